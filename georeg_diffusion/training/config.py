"""Everything that `train` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from georeg_diffusion.options import option
from georeg_diffusion.training.lambda_schedule import SCHEDULES

_DATA, _MODEL, _STEPS = "Data", "Model", "Length and optimiser"
_ISOMETRY, _OUTPUT, _MACHINE = "Isometry", "Output, checkpoints and resume", "Machine"


@dataclass(frozen=True)
class TrainConfig:
    """Train an isometric diffusion model.

    Without arguments (or with --with-baseline) this is the whole comparison: it trains a small DDPM on scikit-learn's
    digits, continues it twice from the same weights with the same data order, once without and once with the isometry
    loss, scores both and writes pictures. Given data or a model it trains the isometric model alone.

    To resume an interrupted run, run the same command again; a finished run prints its table.

    Example:
        >>> from georeg_diffusion import TrainConfig
        >>> config = TrainConfig(resolution=32, lambda_iso=1e-3)
        >>> config.resolution, config.seed
        (32, 0)
    """

    train_data_dir: Path | None = option(
        None,
        "Folder of images, searched through; captions from metadata.jsonl. Default: scikit-learn's digits.",
        panel=_DATA,
    )
    dataset_name: str | None = option(
        None,
        "Data set of Hugging Face's datasets: an id on the hub or a local folder; --train-data-dir goes first.",
        panel=_DATA,
    )
    dataset_config_name: str | None = option(None, "Configuration of a data set that has several.", panel=_DATA)
    dataset_split: str = option("train", "Its split, such as train[:1000].", panel=_DATA)
    image_column: str | None = option(None, "Column of the images. Default: the first that holds images.", panel=_DATA)
    caption_column: str | None = option(
        None, "Column or metadata key of the captions. Default: text, caption or prompt.", panel=_DATA
    )
    max_train_samples: int | None = option(None, "Use only the first so many images.", panel=_DATA, minimum=1)
    resolution: int | None = option(
        None,
        "Height and width of the training images. Default: the model's, or 16 for digits and 32 for others.",
        panel=_DATA,
        minimum=2,
    )
    center_crop: bool = option(False, "Crop the centre instead of a random window.", panel=_DATA)
    random_flip: bool | None = option(
        None, "Flip each image left to right with probability 1/2. Default: on, off for digits.", panel=_DATA
    )
    strict: bool = option(False, "Refuse a folder with an unreadable image instead of skipping it.", panel=_DATA)
    dataloader_num_workers: int | None = option(
        None,
        "Processes that load images. Default: up to 4 for each GPU where images come from files, otherwise 0.",
        panel=_DATA,
        minimum=0,
    )

    pretrained_model_name_or_path: str | None = option(
        None, "Model to continue: a diffusers folder or hub id. Default: train one first, or start afresh.", panel=_MODEL
    )
    model_config_name_or_path: Path | None = option(
        None, "config.json of a UNet2DModel to train from scratch.", panel=_MODEL
    )
    vae: str | None = option(
        None,
        "Autoencoder of a latent model: a diffusers folder or hub id. Each image's centre is encoded once and kept on disk.",
        panel=_MODEL,
    )
    cache_dir: Path | None = option(
        None, "Folder of encoded images and captions, shared by runs. Default: cache in the output folder.", panel=_MODEL
    )
    instance_prompt: str | None = option(
        None, "One caption for all images, in place of their own, for a text-conditioned model.", panel=_MODEL
    )
    validation_prompt: str | None = option(
        None, "What scores and pictures of a text-conditioned model are made with. Default: the first caption.", panel=_MODEL
    )
    conditioning_dropout_prob: float = option(
        0.1,
        "Share of draws whose caption or class is left out, for classifier-free guidance; they train no isometry.",
        panel=_MODEL,
        minimum=0,
        maximum=1,
    )
    lora: bool | None = option(
        None, "Train low-rank adapters alone, saved in diffusers' LoRA format. Default: on for text models.", panel=_MODEL
    )
    rank: int = option(4, "Rank of the adapters.", panel=_MODEL, minimum=1)
    lora_alpha: float | None = option(
        None, "The adapters are scaled by this over the rank. Default: the rank.", panel=_MODEL, minimum=0
    )
    ddpm_num_steps: int = option(1000, "Timesteps T of a new model's noise schedule.", panel=_MODEL, minimum=2)
    ddpm_beta_schedule: str = option(
        "linear",
        "Noise schedule of a new model.",
        panel=_MODEL,
        choices=("linear", "scaled_linear", "squaredcos_cap_v2"),
    )
    prediction_type: str = option(
        "epsilon", "What a new model predicts.", panel=_MODEL, choices=("epsilon", "sample", "v_prediction")
    )

    loss_weighting: str = option(
        "uniform",
        "λ(t) of the denoising loss: uniform, or the error of the predicted image weighted by SNR or min(SNR, 5).",
        panel=_STEPS,
        choices=("uniform", "snr", "min-snr"),
    )

    with_baseline: bool | None = option(
        None, "Train base and isometric from the same weights and compare. Default: on without data or model.", panel=_STEPS
    )
    num_epochs: int = option(10, "Passes over the data, where --max-train-steps is not given.", panel=_STEPS, minimum=1)
    max_train_steps: int | None = option(
        None, "Optimiser steps, for each phase. Default for the digits comparison: 800 and 300.", panel=_STEPS, minimum=1
    )
    train_batch_size: int = option(64, "Images per step and process.", panel=_STEPS, minimum=1)
    gradient_accumulation_steps: int = option(1, "Micro-batches per optimiser step.", panel=_STEPS, minimum=1)
    gradient_checkpointing: bool = option(
        False, "Save memory: recompute the network's activations on the way back.", panel=_STEPS
    )
    learning_rate: float = option(
        1e-4, "Adam's step size (phase 1 of the comparison: ten times this).", panel=_STEPS, minimum=0
    )
    lr_scheduler: str = option(
        "constant",
        "Course of the step size.",
        panel=_STEPS,
        choices=("constant", "constant_with_warmup", "linear", "cosine"),
    )
    lr_warmup_steps: int = option(0, "Steps of linear warm-up.", panel=_STEPS, minimum=0)
    adam_beta1: float = option(0.9, "Adam's β₁.", panel=_STEPS, minimum=0, maximum=1)
    adam_beta2: float = option(0.999, "Adam's β₂.", panel=_STEPS, minimum=0, maximum=1)
    adam_weight_decay: float = option(0.0, "Decoupled weight decay (AdamW) where above 0.", panel=_STEPS, minimum=0)
    adam_epsilon: float = option(1e-8, "Adam's ε.", panel=_STEPS, minimum=0)
    max_grad_norm: float = option(1.0, "Clip the gradient's norm; 0 leaves it.", panel=_STEPS, minimum=0)
    use_ema: bool = option(True, "Average the weights; the average is what is saved.", panel=_STEPS)
    ema_max_decay: float = option(0.9999, "Largest decay of the average.", panel=_STEPS, minimum=0, maximum=1)
    ema_inv_gamma: float = option(1.0, "Inverse gamma of the average's warm-up.", panel=_STEPS, minimum=0)
    ema_power: float = option(0.75, "Power of the average's warm-up.", panel=_STEPS, minimum=0)

    lambda_iso: float = option(
        1e-2, "λ, the weight of the normalised isometry loss (perfect: 1).", panel=_ISOMETRY, minimum=0
    )
    lambda_iso_schedule: str = option(
        "constant",
        "Course of λ over the steps: warmup over the first fifth, a decay to 0 at the end, early for the first half alone.",
        panel=_ISOMETRY,
        choices=SCHEDULES,
    )
    isometry_skip: float = option(
        0.5,
        "p, the share of timesteps from clean data on that is left alone: the loss acts at t > pT.",
        panel=_ISOMETRY,
        minimum=0,
        maximum=1,
    )
    metric: str = option(
        "sphere",
        "Metric of the noise space.",
        panel=_ISOMETRY,
        choices=("sphere", "stereographic", "stereographic-flat", "ambient", "isodiff"),
    )
    regularizer: str = option(
        "isometry",
        "The loss: isometry (Eq. 6), conformal, strict (scale 1), path-length (StyleGAN2's), contractive, flat, or a "
        "plug-in's. All but the first two want a λ of their own.",
        panel=_ISOMETRY,
    )
    normalize: bool = option(
        True, "Multiply the ratio of isometry and conformal by d, so that 1 is perfect.", panel=_ISOMETRY
    )
    num_probes: int | None = option(
        None, "Random probes per sample. Default: the estimator's own, 1 for hutchinson.", panel=_ISOMETRY, minimum=1
    )
    estimator: str = option(
        "hutchinson", "Trace estimator: hutchinson, exact, gram, hutchpp, xtrace, auto, or a plug-in's.", panel=_ISOMETRY
    )
    timestep_bins: int = option(
        20, "Bins of t within which expectations are pooled; 0 pools over all t.", panel=_ISOMETRY, minimum=0
    )
    momentum: float = option(
        0.9, "Decay of the bins' running means; 0 keeps none.", panel=_ISOMETRY, minimum=0, maximum=0.9999
    )
    scope: str = option(
        "global", "Expectations over all processes, or over each one's batch.", panel=_ISOMETRY, choices=("global", "batch")
    )
    pool_micro_batches: bool = option(
        False,
        "Expectations also over the micro-batches of a step, exactly: a first pass measures the gated samples (3 encoder "
        "passes more).",
        panel=_ISOMETRY,
    )
    isometry_every: int = option(1, "Apply the loss at every k-th step, with weight k.", panel=_ISOMETRY, minimum=1)
    recompute: bool = option(
        False,
        "Save memory: the isometry loss runs in passes of its own, a chunk at a time (about twice its work; same gradient).",
        panel=_ISOMETRY,
    )
    chunk_size: int | None = option(
        None,
        "With --recompute, pairs of a sample and a probe at a time. Default: 1. More is faster and takes more memory.",
        panel=_ISOMETRY,
        minimum=1,
    )
    h_module: str | None = option(
        None, "Name of the submodule whose output is h. Default: the middle block.", panel=_ISOMETRY
    )

    output_dir: Path = option(Path("outputs/digits"), "Where everything is written.", panel=_OUTPUT)
    overwrite_output_dir: bool = option(False, "Delete what an earlier run left in the output folder.", panel=_OUTPUT)
    checkpointing_steps: int = option(500, "Optimiser steps between checkpoints.", panel=_OUTPUT, minimum=1)
    checkpoints_total_limit: int = option(
        2, "Checkpoints kept per phase; the one before takes over from a damaged one.", panel=_OUTPUT, minimum=1
    )
    logging_steps: int = option(25, "Optimiser steps between log entries.", panel=_OUTPUT, minimum=1)
    report_to: str = option(
        "tensorboard", "Tracker beside log.jsonl.", panel=_OUTPUT, choices=("tensorboard", "wandb", "trackio", "none")
    )
    push_to_hub: bool = option(False, "Upload the isometric model with its card at the end.", panel=_OUTPUT)
    hub_model_id: str | None = option(
        None, "Its repository on the hub. Default: your name and the output folder's.", panel=_OUTPUT
    )
    hub_private_repo: bool = option(False, "Make that repository private.", panel=_OUTPUT)
    validation_steps: int | None = option(
        None,
        "Score the averaged weights every so many steps and keep the best. Default: keep the last.",
        panel=_OUTPUT,
        minimum=1,
    )
    select_by: str = option(
        "fid", "What is best: the lowest FID or denoising loss.", panel=_OUTPUT, choices=("fid", "denoising")
    )
    num_validation_images: int = option(2048, "Images of one such FID, by 20 DDIM steps.", panel=_OUTPUT, minimum=2)
    features: str | None = option(
        None,
        "Of Fréchet distances: inception, a network of torchvision, or a folder of train-classifier. Default for digits: a "
        "classifier trained in place; for --select-by fid: inception.",
        panel=_OUTPUT,
    )
    inception_weights: Path | None = option(None, "File of Inception's weights. Default: torch's hub cache.", panel=_OUTPUT)
    evaluate: bool = option(True, "Score the models and draw the pictures at the end.", panel=_OUTPUT)

    seed: int = option(0, "Seeds weights, data order, noise, timesteps, probes and flips.", panel=_MACHINE, minimum=0)
    mixed_precision: str = option("no", "Precision of the network.", panel=_MACHINE, choices=("no", "fp16", "bf16"))
    cpu: bool = option(False, "Stay on the CPU.", panel=_MACHINE)
    deterministic: bool = option(
        False, "Take deterministic algorithms alone, so that a GPU repeats a run bit for bit; slower.", panel=_MACHINE
    )
    dry_run: bool = option(
        False,
        "Print parameters, memory, time per step and what isometry costs here; write nothing.",
        panel=_MACHINE,
    )

"""Every shell command in README and docs is run as it stands, in a folder of small real images and tiny models.

A page's commands run one after the other, as its reader would type them, with nothing added but options of `SMALLER`,
which limit sizes. What cannot be run here is in `NOT_RUN`, with the reason; its options are parsed all the same.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from georeg_diffusion import cli
from georeg_diffusion._compat import diffusers
from georeg_diffusion.report.panels import save_image
from tests.georeg_diffusion.networks import vae
from tests.test_readme import ROOT, known_options

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
FENCE = re.compile(r"^```(\{?[\w-]*\}?)\n(.*?)^```$", re.M | re.S)
STARTS = r"georeg-diffusion|(?:\.venv/bin/)?python3?|(?:\.venv/bin/)?pip|pip-audit|torchrun|accelerate|srun|make|bash|pytest"
COMMAND = re.compile(rf"(?:\w+=\S+ )*(?:{STARTS}) (?!…)\S.*")
OURS = r"-m georeg_diffusion |^georeg-diffusion "
CPU = "--device cpu"
STEPS = "--num-inference-steps 3"

# Appended, and nothing else: later options win over earlier ones.
SMALLER = {
    "train": "--max-train-steps 2 --train-batch-size 4 --max-train-samples 8 --cpu --no-evaluate --report-to none",
    "train-classifier": "--max-train-steps 2 --train-batch-size 4 --architecture small --resolution 16 " + CPU,
    "evaluate": f"--scores isometry,mrtl --num-samples 4 --timesteps 600,800 {STEPS} {CPU}",
    "inspect": f"--num-images 2 --timesteps 600,800 --top 2 --spectrum-images 1 --num-probes 1 {STEPS} {CPU}",
    "sample": f"--num-images 2 {STEPS} {CPU}",
    "interpolate": f"--frames 3 {STEPS} {CPU}",
    "invert": f"{STEPS} {CPU}",
    "edit": f"--gammas=-1,1 --num-samples 8 {STEPS} {CPU}",
}
# In the order in which they are looked for: (pattern, why it is not run here).
NOT_RUN = [
    (r"^make demo", "7 minutes; tests/georeg_diffusion/test_train.py runs the same in small"),
    (r"^make ", "runs tests, benchmarks or all examples; that the target exists is checked"),
    (r"pip |pip-audit", "needs the network"),
    (r"--preset (?!digits-quick)", "fetches model and data from the hub"),
    (r"--dataset (?!digits)|--data-dir", "needs the real data and a GPU"),
    (r"georeg-diffusion (reproduce|sweep)", "minutes; tests/georeg_diffusion/experiments runs them in small"),
    (
        r"^(srun )?torchrun|^accelerate|=\S+ torchrun",
        "several processes; tests/georeg_diffusion/test_distributed.py runs two",
    ),
    (r"benchmarks", "tens of seconds to minutes; the fast part of the tests runs their functions"),
    (r"python(3)? -m venv", "makes an environment"),
    (r"pytest ", "runs tests"),
    (r"--method labels", "needs a model whose samples look like digits; tests/georeg_diffusion/test_edit.py has one"),
]
# What a page's placeholders stand for here.
NAMED = [("MODEL", "outputs/digits/isometric"), (" A B", " 1 2"), ("IMAGE...", "face.png"), (" IMAGES", " photos")]


def commands(page):
    """The shell commands of a page, in its order, without repetitions."""
    text = page.read_text()
    prose = FENCE.sub("", text)
    found = [(m.start(), m[2]) for m in FENCE.finditer(text) if m[1] in ("bash", "sh", "console")]
    found += [(text.index(m[0]), m[1]) for m in re.finditer(r"(?m)^ {4}(\S.*)$", prose)]
    # `georeg-diffusion evaluate` and the like only name a command; `make demo` and the like are commands.
    spans = [m for m in re.finditer(r"`([^`]+)`", prose) if not re.fullmatch(r"georeg-diffusion \S+", m[1])]
    found += [(text.index(m[0]), m[1].replace("\n", " ")) for m in spans]
    lines = [line for _, block in sorted(found) for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    lines = [re.sub(r"\s{2,}#.*|\s# .*", "", line).strip() for line in lines]
    return list(dict.fromkeys(line for line in lines if COMMAND.fullmatch(line) and "…" not in line))


def reason(line):
    return next((why for pattern, why in NOT_RUN if re.search(pattern, line)), None)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What the pages take for granted: folders of photos and faces, models of several kinds, two trained on digits."""
    from skimage.data import lfw_subset

    folder = tmp_path_factory.mktemp("docs")
    faces = torch.as_tensor(lfw_subset()[:8], dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) * 2 - 1
    for name in ("photos", "faces", "my-faces"):
        (folder / name).mkdir()
        for i, face in enumerate(faces):
            save_image(face, folder / name / f"{i:04}.png")
    lines = [f'{{"file_name": "{i:04}.png", "text": "a face, number {i}"}}\n' for i in range(8)]
    (folder / "faces" / "metadata.jsonl").write_text("".join(lines))
    Image.fromarray((lfw_subset()[0] * 255).astype(np.uint8)).resize((16, 16)).save(folder / "face.png")
    rows = [f"{i:04}.png {1 - 2 * (i % 2)} {1 - 2 * (i // 4)}\n" for i in range(8)]
    (folder / "list_attr_celeba.txt").write_text("8\nSmiling Young\n" + "".join(rows))
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "layers_per_block": 1}

    def save_ddpm(name, channels, size):
        unet = diffusers.UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            **blocks,
        )
        diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder / name)

    save_ddpm("ddpm", 3, 32)
    vae(in_channels=3, out_channels=3).save_pretrained(folder / "my-vae")
    pytest.importorskip("peft")
    from tests.georeg_diffusion.text_model import stable_diffusion

    stable_diffusion(folder / "my-stable-diffusion").save_pretrained(folder / "my-stable-diffusion")
    for name in ("base", "isometric"):
        save_ddpm(f"outputs/digits/{name}", 1, 16)
    (folder / "outputs" / "digits" / "config.yaml").write_text("train_data_dir: null\nresolution: 16\nrandom_flip: false\n")
    (folder / "outputs" / "digits" / "prepared").touch()
    return folder


def code_of(arguments):
    """Exit code of the command line, in this process."""
    try:
        cli.main(arguments)
    except SystemExit as stop:
        return stop.code or 0
    return 0


def run_cli(line):
    _, name, *rest = shlex.split(line)
    return code_of([name, *rest, *SMALLER[name].split()])


def run_python(line):
    """Exit code of `python …`, by this interpreter in the repository's root."""
    _, *rest = shlex.split(line)
    limits = [] if "--quick" in rest or "-c" in rest else ["--quick"]
    where = {"cwd": ROOT, "env": {**os.environ, "MPLBACKEND": "Agg"}}
    done = subprocess.run([sys.executable, *rest, *limits], capture_output=True, text=True, check=False, **where)
    print(done.stdout, done.stderr)
    return done.returncode


def set_up(prepared, folder, *, for_training):
    """Digits' models for all commands but `train`, which makes them; what `train` made gives way to those prepared."""
    digits = folder / "outputs" / "digits"
    if not for_training or (digits / "prepared").exists():
        shutil.rmtree(digits, ignore_errors=True)
    shutil.copytree(prepared, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("outputs") if for_training else None)


@pytest.mark.parametrize("page", [p for p in PAGES if any(reason(c) is None for c in commands(p))], ids=lambda p: p.name)
def test_commands_run_as_they_stand(page, prepared, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for line in commands(page):
        if reason(line) is not None:
            continue
        given = line
        for placeholder, stand_in in NAMED:
            line = line.replace(placeholder, stand_in)
        set_up(prepared, tmp_path, for_training=line.startswith("georeg-diffusion train "))
        is_ours = line.startswith("georeg-diffusion")
        code = run_cli(line) if is_ours else run_python(line)
        said = capfd.readouterr()
        if line != given:  # not one of a series: the next finds the default output folder empty
            shutil.rmtree(tmp_path / "outputs" / line.split()[1], ignore_errors=True)
        assert code == 0, f"{page.name}: {line}\n{said.out[-2000:]}\n{said.err[-2000:]}"


OPTIONS_ONLY = sorted({(c, reason(c)) for page in PAGES for c in commands(page) if reason(c) is not None})


@pytest.mark.parametrize("line", [line for line, _ in OPTIONS_ONLY if re.search(OURS, line)])
def test_options_of_what_is_not_run_are_accepted(line, monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "_loading", lambda run: asked.append)
    arguments = shlex.split(re.split(OURS, line, maxsplit=1)[1])
    assert code_of(arguments) == 0, line
    assert len(asked) == 1, line


@pytest.mark.parametrize(
    "line", [line for line, _ in OPTIONS_ONLY if re.match(r"python -m benchmarks|python benchmarks", line)]
)
def test_benchmarks_know_their_options(line):
    name = re.search(r"benchmarks[./](\w+)", line)[1]
    source = (ROOT / "benchmarks" / f"{name}.py").read_text()
    for option in re.findall(r"--[\w-]+", line):
        assert f'"{option}"' in source, f"{line}: {name} has no {option}"


def test_nothing_is_left_out_without_need():
    lines = [c for page in PAGES for c in commands(page)]
    ours = {shlex.split(c)[1] for c in lines if c.startswith("georeg-diffusion") and reason(c) is None}
    assert ours == set(SMALLER), "each command is run at least once"
    for pattern, why in NOT_RUN:
        assert any(re.search(pattern, c) for c in lines), f"{pattern} ({why}) is about no command: take it out"
    limits = {word for options in SMALLER.values() for word in re.findall(r"--[\w-]+", options)}
    assert limits <= known_options()

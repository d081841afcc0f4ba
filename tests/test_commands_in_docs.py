"""Every shell command in README and docs is run as it stands, in a folder of small real images and tiny models.

A page's commands run one after the other, as its reader would type them, with nothing added but options of `SMALLER`,
which limit sizes, and of `NO_HUB`, which name what would come from the hub and fit the size to what stands in for it. What
cannot be run here is in `NOT_RUN`, with the reason; its options are parsed all the same.
"""

import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import torch
from PIL import Image

from georeg_diffusion import cli
from georeg_diffusion._compat import diffusers
from georeg_diffusion.commands import available
from georeg_diffusion.evaluation.classifier import KIND, assemble, build
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
REHEARSED = f"--seeds 1 --max-train-steps 1 --num-samples 2 --num-inference-steps 2 {CPU}"

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
    "reproduce": REHEARSED,
    "sweep": f"{REHEARSED} --lambda-iso 1e-2",
    "data_loading": "--batch 2 --size 8 8 --repeats 1 --no-steps",
    "estimator_variance": "--repeats 2 --output variance.png",
    "step_cost": "--only plain --batch 1",
    "pytest": "--collect-only -q -p no:cacheprovider",
    "make": "--dry-run",
    "venv": "--without-pip",
}
LIMIT = 300  # seconds for a command
# The digits' model is of 8 x 8, for dense Jacobians in no time.
GREY = "--pretrained grey"
ONE_SCHEDULE = "--lambda-iso-schedule constant"
# Appended where a model or weights would be fetched, or where the tiny model that stands in is not made for the size.
NO_HUB = {
    "--vae my-vae": "--resolution 16",
    "--dataset": "--pretrained colour --features classifier --lpips-backbone features",
    "--preset celebahq256": "--pretrained-model-name-or-path colour --train-data-dir photos --resolution 8 "
    "--features classifier --num-validation-images 4",
}
# In the order in which they are looked for: (pattern, why it is not run here).
NOT_RUN = [
    (r"pip |pip-audit", "needs the network; that the extras exist is checked"),
    (r"reproduce all", "an hour; tests/georeg_diffusion/experiments runs each experiment in small"),
    (
        r"^(srun )?torchrun|^accelerate|=\S+ torchrun",
        "several processes; tests/georeg_diffusion/test_distributed.py runs two",
    ),
    (r"benchmarks\.(gradient_quality|spectrum_ddpm256|two_ranks)", "minutes, also in small; its options are checked"),
    (r"--device cuda", "needs a GPU; its options are checked"),
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


def untrained_classifier(channels):
    shape = {"channels": channels, "resolution": 8}
    features, head = build("small", outputs=10, **shape)
    names = [str(digit) for digit in range(10)]
    kind = {"_class_name": KIND, "architecture": "small", "names": names, "exclusive": True}
    return assemble({**kind, **shape, "accuracy": None, "data": "an untrained network"}, features, head)


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
    save_ddpm("grey", 1, 8)
    save_ddpm("colour", 3, 8)
    for name, channels in (("outputs/reproduce/classifiers/digits-8", 1), ("classifier", 3)):
        untrained_classifier(channels).save(folder / name)
    shutil.copytree(folder / "outputs" / "reproduce", folder / "outputs" / "sweep")
    for name in ("reproduce", "sweep"):
        (folder / "outputs" / name / "reproduce.json").write_text("{}")  # ours: not refused for what is in it
    vae(in_channels=3, out_channels=3).save_pretrained(folder / "my-vae")
    pytest.importorskip("peft")
    from tests.georeg_diffusion.text_model import stable_diffusion

    stable_diffusion(folder / "my-stable-diffusion").save_pretrained(folder / "my-stable-diffusion")
    for name in ("base", "isometric"):
        save_ddpm(f"outputs/digits/{name}", 1, 16)
    (folder / "outputs" / "digits" / "config.yaml").write_text("train_data_dir: null\nresolution: 16\nrandom_flip: false\n")
    (folder / "outputs" / "digits" / "prepared").touch()
    return folder


@pytest.fixture(scope="module")
def ran():
    """Commands that another page has had run, as it stands here."""
    return set()


def code_of(arguments):
    """Exit code of the command line, in this process."""
    try:
        cli.main(arguments)
    except SystemExit as stop:
        return stop.code or 0
    return 0


def run_cli(line):
    _, name, *rest = shlex.split(line)
    added = [SMALLER[name], *(options for pattern, options in NO_HUB.items() if pattern in line)]
    if name in ("reproduce", "sweep") and "--dataset" not in line:
        added.append(GREY)
    if name == "sweep" and "--lambda-iso-schedule" not in line:
        added.append(ONE_SCHEDULE)
    return code_of([name, *rest, *" ".join(added).split()])


def run_forked(command, *arguments):
    """Exit code of a command in a process of its own, which has loaded torch already.

    No command meets what another left in memory, and of one that dies the exit code and the output tell.
    """
    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(command(*arguments)))
    process.start()
    process.join(LIMIT)
    if process.is_alive():
        process.kill()
        process.join()
        return f"none within {LIMIT} s"
    return process.exitcode


def run_elsewhere(arguments, *, where):
    """Exit code of a command in a process of its own."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # a pytest of its own
    environment = {**ours, "MPLBACKEND": "Agg"}
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=where, env=environment)
    print(done.stdout, done.stderr)
    return done.returncode


def run_benchmark(line, name):
    rest = shlex.split(line)[3 if " -m " in line else 2 :]
    sys.argv = [name, *rest, *SMALLER[name].split()]
    runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"), run_name="__main__")


def run(line):
    """Exit code of a command line."""
    first, *rest = shlex.split(line)
    benchmark = re.search(r"python -m benchmarks\.(\w+)|python benchmarks/(\w+)\.py", line)
    if first == "georeg-diffusion":
        return run_forked(run_cli, line)
    if benchmark:
        return run_forked(run_benchmark, line, benchmark[1] or benchmark[2])
    if first == "make":
        return run_elsewhere([first, *rest, *SMALLER[first].split()], where=ROOT)
    if first == "pytest":
        return run_elsewhere([sys.executable, "-m", first, *rest, *SMALLER[first].split()], where=ROOT)
    if "-m venv" in line:
        return run_elsewhere([sys.executable, *rest, *SMALLER["venv"].split()], where=None)
    limits = [] if "--quick" in rest or "-c" in rest else ["--quick"]
    return run_elsewhere([sys.executable, *rest, *limits], where=ROOT)


def set_up(prepared, folder, *, for_training):
    """Digits' models for all commands but `train`, which makes them; what `train` made gives way to those prepared."""
    digits = folder / "outputs" / "digits"
    if not for_training or (digits / "prepared").exists():
        shutil.rmtree(digits, ignore_errors=True)
    shutil.copytree(prepared, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("outputs") if for_training else None)


@pytest.mark.parametrize("page", [p for p in PAGES if any(reason(c) is None for c in commands(p))], ids=lambda p: p.name)
def test_commands_run_as_they_stand(page, prepared, ran, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for line in commands(page):
        if reason(line) is not None or line in ran:
            continue
        if not re.match(r"georeg-diffusion (?!reproduce|sweep)|python examples", line):
            ran.add(line)  # needs nothing that its page has made before
        given = line
        for placeholder, stand_in in NAMED:
            line = line.replace(placeholder, stand_in)
        set_up(prepared, tmp_path, for_training=line.startswith("georeg-diffusion train "))
        code = run(line)
        said = capfd.readouterr()
        if line != given:  # not one of a series: the next finds the default output folder empty
            shutil.rmtree(tmp_path / "outputs" / line.split()[1], ignore_errors=True)
        assert code == 0, f"{page.name}: {line}: exit code {code}\n{said.out[-2000:]}\n{said.err[-2000:]}"


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


def test_extras_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {extra for page in PAGES for c in commands(page) for extra in re.findall(r"georeg\[(\w+)\]", c)}
    assert named
    assert named <= set(project["optional-dependencies"])


def test_nothing_is_left_out_without_need():
    lines = [c for page in PAGES for c in commands(page)]
    ours = {shlex.split(c)[1] for c in lines if c.startswith("georeg-diffusion") and reason(c) is None}
    assert ours == set(available()), "each command is run at least once"
    for pattern, why in NOT_RUN:
        assert any(re.search(pattern, c) for c in lines), f"{pattern} ({why}) is about no command: take it out"
    appended = [*(SMALLER[name] for name in ours), GREY, ONE_SCHEDULE, *NO_HUB.values()]
    assert {word for options in appended for word in re.findall(r"--[\w-]+", options)} <= known_options()

"""The command line: each command parses, calls one public function, prints.

Results go to standard output, progress to standard error. Exit 0; 2 for bad input, with one line;
143 after SIGTERM and 130 after Ctrl-C, with everything finished kept.
"""

from __future__ import annotations

import ast
import ctypes
import dataclasses
import errno
import io
import logging
import os
import platform
import re
import shlex
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from vdvae_repr.config import suggestion
from vdvae_repr.errors import (
    CheckpointError,
    DataError,
    TaskError,
    Terminated,
    VDVAEReprError,
    counted,
    first_line,
    printable,
)
from vdvae_repr.output import refuse_formats

if TYPE_CHECKING:
    from vdvae_repr import VDVAE, LatentStore, PixelCNN
    from vdvae_repr.data.source import Source

QUOTE = '"'
PARAMETER = re.compile(
    r'\w[\w.]*\([^()]*\)|(?<![\w.])([a-z_]+)=(True|False|None|"[^"]*"|\d+|[A-Z]{2,})(?![\w.])'
)  # name=value, in a message; not in a call, as torchvision.datasets.CIFAR10("data", download=True)


class WholeLines(TyperGroup):
    """Lists commands with the whole first sentence of each."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section."""
        self.write_section(formatter, "Commands", list(self.commands))

    def write_section(self, formatter: Any, title: str, names: Sequence[str]) -> None:
        """Write some commands under a title."""
        with formatter.section(title):
            formatter.write_dl([(n, self.commands[n].get_short_help_str(200)) for n in names])


class Grouped(WholeLines):
    """Lists commands by what they are for."""

    groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "Latents": ("extract", "probe", "compare", "report", "store"),
        "Images": ("decode", "sample"),
        "Brains": ("brain",),
        "Models": ("train", "distill", "evaluate", "layers", "export"),
        "A first look": ("demo",),
    }

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each purpose."""
        for title, names in self.groups.items():
            self.write_section(formatter, title, names)


class LongHelp(TyperCommand):
    """Lists many options by what they are for."""

    groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "What is measured": ("task", "selection", "atlas", "head", "control", "beside", "drawn"),
        "The model": ("model", "preset", "teacher", "config"),
        "The run": (
            "resume", "init_from", "override", "log_with", "probe_every", "probe_data", "probe_layer",
        ),
        "Images": (
            "data", "rows", "data_root", "download", "split", "crop", "align", "resize", "mirror", "on_error",
        ),
        "Latents": (
            "latents", "train", "test", "layer", "feature", "z", "draws", "pool", "dtype", "first", "image",
            "fine_from", "rest", "pixels", "temperature", "like",
        ),
        "How it is computed": (
            "iw", "precision", "batch_size", "num_workers", "accumulate", "channels_last", "recompute",
            "compile", "cuda_graphs", "device", "seed", "cache", "no_cache",
        ),
        "What is written": (
            "out", "sheet", "overwrite", "no_images", "layout", "formats", "every_row", "json_lines", "help",
        ),
    }  # fmt: skip

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then a section for each purpose."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        sections |= {title: [] for title in self.groups}
        titles = {name: title for title, names in self.groups.items() for name in names}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                of = parameter.param_type_name == "argument"
                title = "Arguments" if of else titles[str(parameter.name)]
                sections[title].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


app = typer.Typer(
    cls=Grouped,
    help="What does each layer of a very deep VAE know?",
    epilog="A first try: vdvae-repr extract --layer 32x32, then vdvae-repr probe --task face_id",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
store_app = typer.Typer(
    cls=WholeLines, help="Look into a latent store, or exchange one.", no_args_is_help=True
)
app.add_typer(store_app, name="store")
brain_app = typer.Typer(
    cls=WholeLines,
    help="Decode brain responses into latents; tasks encoding and rsa of probe compare layers with them.",
    no_args_is_help=True,
)
app.add_typer(brain_app, name="brain")

DEFAULT = ("single", "cumulative")  # selections of probe
NOT_SEEN = "that latents are of these images was not checked"  # of imported ones
DRAWN = "toy-faces"  # the images where none are named
PUBLISHED = ("openai:", "timm:", "facenet:")  # names of models whose weights --download fetches
ATLAS = ("single", "cumulative", "without", "pruned")  # selections of probe --atlas
Model = Annotated[
    str,
    typer.Option(
        help="Packaged name, run folder, .safetensors, published .th, or openai:NAME, as openai:imagenet64."
    ),
]
AnyModel = Annotated[
    str,
    typer.Option(
        help="A VDVAE, as for sample; or timm:NAME, facenet:vggface2, with @FILE (own weights) or @random."
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(help="Architecture of a .th file, if its shapes do not tell: a name or a TOML."),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Folder, .tar or shards, .csv, .npy, .npz, .h5, FILE:KEY, or a name, as cifar10; toy-faces, if "
        "not given."
    ),
]
Rows = Annotated[
    str | None,
    typer.Option(
        help="Images to take, counted from 0: 0:8859 (8859 not among them), or a file of numbers."
    ),
]
Crop = Annotated[
    int | None, typer.Option(help="Cut out the central square of so many pixels first.")
]
DataOfRun = Annotated[
    str | None,
    typer.Option(help="What extract takes; toy-faces, or what a resumed run was trained on."),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on from the newest checkpoint, with the run's own flags."),
]
Override = Annotated[list[str], typer.Option("--set", help="train.lr=1e-4, model.width=64")]
Accumulate = Annotated[
    int | None, typer.Option(min=1, help="Micro-batches a step and process; 1, if not given.")
]
LogWith = Annotated[
    str | None, typer.Option(help="A tracker that accelerate knows, as tensorboard.")
]
Resize = Annotated[
    str | None,
    typer.Option(
        help="How a VDVAE's images are resized: bicubic, if not given, or bilinear as torchvision does."
    ),
]
DataRoot = Annotated[
    str | None,
    typer.Option(help="Where named data sets lie; $VDVAE_REPR_DATA_ROOT, or ./data, if not given."),
]
Download = Annotated[
    bool,
    typer.Option(
        "--download", help="Fetch a named data set, or published weights, that are missing."
    ),
]
Layer = Annotated[
    list[str],
    typer.Option(
        help="8x8, 8x8.2, 30, 0:31, '<=16x16', all; of timm layer3, blocks.5; commas join."
    ),
]
Responses = Annotated[
    str,
    typer.Option(
        help="FILE or FILE:KEY of .npy, .npz, .h5, .mat: (images, voxels) or (repetitions, images, voxels)."
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1; never chosen for you.")]
Temperature = Annotated[
    float,
    typer.Option(min=0.0, help="Spread of the prior's samples: 1 as trained, less is smoother."),
]
Formats = Annotated[
    str,
    typer.Option("--format", help="Formats of figures: png, pdf, svg; commas join several."),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Random seed of all draws.")]
OnError = Annotated[
    str | None,
    typer.Option(
        help="What to do with an image that cannot be read: raise an error, or skip and list it."
    ),
]
NumWorkers = Annotated[
    int | None,
    typer.Option(min=1, help="Threads that decode images ahead; the cores less one, if not given."),
]


def _version(asked: bool) -> None:
    if asked:
        from vdvae_repr import __version__

        print(f"vdvae-repr {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    if debug:
        os.environ["VDVAE_REPR_DEBUG"] = "1"


@app.command(cls=LongHelp)
def extract(
    model: AnyModel = "faces64",
    preset: Preset = None,
    data: Data = None,
    rows: Rows = None,
    data_root: DataRoot = None,
    download: Download = False,
    layer: Layer = ["all"],  # noqa: B006 (typer copies it)
    feature: Annotated[
        list[str] | None, typer.Option(help="mean (if not given), delta, log_std, kl, ...")
    ] = None,
    z: Annotated[
        str, typer.Option(help="What each layer sends down: its mean, or a sample.")
    ] = "mean",
    draws: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many samples of z to store an image; needs --z sample --feature z."
        ),
    ] = None,
    crop: Crop = None,
    align: Annotated[
        bool,
        typer.Option(
            "--align",
            help="Turn and scale each face so that eyes, nose and mouth stand at fixed places (MTCNN).",
        ),
    ] = False,
    resize: Resize = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="Read the mirrored images too.")] = False,
    pool: Annotated[
        str | None,
        typer.Option(
            help="Average each layer to one value (avg) or a 4x4 grid (avg:4) before storing; cls of tokens."
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, or float16, of three digits, to save disk.")
    ] = "float32",
    precision: Annotated[
        str, typer.Option(help="fp32; tf32 (GPUs) or bf16 trade exactness for speed.")
    ] = "fp32",
    on_error: Annotated[
        str,
        typer.Option(
            help="What to do with an image that cannot be read: raise an error, or skip and list it."
        ),
    ] = "raise",
    out: Annotated[Path, typer.Option(help="The store to write.")] = Path("latents.h5"),
    sheet: Annotated[
        Path | None,
        typer.Option(
            help="Write 64 images, spread over all, as the model sees them, to check --crop and --align."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace a finished store, never another file.")
    ] = False,
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Store no images; then no control can run.")
    ] = False,
    layout: Annotated[
        str, typer.Option(help="single file, or virtual: it refers to its parts, half the disk.")
    ] = "single",
    batch_size: Annotated[
        str, typer.Option(help="Images in a forward pass, or auto to measure what is fastest.")
    ] = "32",
    num_workers: NumWorkers = None,
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="Record a pass on the GPU and replay it.")
    ] = False,
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Read per-layer posterior latents into an HDF5 store; rerun to resume; torchrun divides it.

    Example: vdvae-repr extract --data photos/ --layer "<=16x16" --out latents.h5
    """
    import numpy as np
    from tqdm import tqdm

    import vdvae_repr as vr

    if batch_size != "auto" and not (batch_size.isdecimal() and int(batch_size)):
        raise TaskError(f"--batch-size: expected a number from 1, or auto, found {batch_size!r}")
    log = _Log(data)
    data = data or DRAWN
    _refuse_missing(data)
    if sheet is not None:
        if no_images:
            raise TaskError("--sheet shows stored images; leave --no-images out")
        from vdvae_repr.data.datasets import is_name
        from vdvae_repr.data.sheet import check_outside, check_picture

        check_picture(sheet)
        if not is_name(data) and Path(data).is_dir():
            check_outside(sheet, Path(data))
    _keep_freed_memory()
    if device == "cuda":  # one card a process of torchrun
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    main_process = _is_main_process()
    net = vr.load(
        model,
        preset=preset,
        device=device,
        compile=compile,
        cuda_graphs=cuda_graphs,
        download=download,
    )
    source = _open(data, data_root, download, rows, log.hold, model)
    started, done = time.monotonic(), 0

    def show(count: int) -> None:
        nonlocal done
        done += count
        bar.update(count)

    resumed = not overwrite and any(Path(f"{out}.parts").glob("part-*.h5"))
    hidden = not (sys.stderr.isatty() and main_process)
    with tqdm(total=len(source), unit="img", leave=False, disable=hidden) as bar:
        store = vr.extract(
            net,  # type: ignore[arg-type]  # a PixelCNN is refused
            source, out, layers=layer, features=feature,
            z=z, draws=draws, seed=seed, crop=crop, align=align, resize=resize, mirror=mirror,
            pool=pool, dtype=dtype, precision=precision, on_error=on_error, layout=layout,
            batch_size="auto" if batch_size == "auto" else int(batch_size), num_workers=num_workers,
            images=not no_images,
            overwrite=overwrite, report=log if main_process else lambda line: None,
            progress=show,
        )  # fmt: skip
    if not main_process:
        return
    # Of a resumed extraction some of what is done was done before.
    rate = "" if resumed or not done else f", {done / (time.monotonic() - started):.1f} images/s"
    _print(f"{out}: {counted(len(store), 'image')}, {counted(len(store.layers), 'layer')}{rate}")
    if sheet is not None:
        from vdvae_repr.data.sheet import save_sheet, spread

        on_sheet = spread(len(store))
        shown = store.read("images", "images", np.array(on_sheet))
        save_sheet(shown, sheet, captions=[store.ids[row] for row in on_sheet])
        _print(f"{sheet}: {_on_sheet(len(store))} as the model sees them")


class TaskOptions(LongHelp):
    """A command that takes the options of tasks too, which stand in the tasks' own dataclasses."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """List the tasks and their options, read only where help is asked for."""
        with formatter.section("Tasks and their options"):
            formatter.write_dl(_task_help())


@cache
def _tasks() -> dict[str, tuple[str, dict[str, str]]]:
    """Return each task's first line, and its options with their help, by its name.

    They are read from the source of the dataclasses, as importing these takes seconds. Tasks of the user's
    own are imported already, where there are any.
    """
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for path in sorted(Path(__file__).with_name("tasks").glob("*.py")):
        for kind in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(kind, ast.ClassDef):
                continue
            fields = {
                item.target.id: item.value
                for item in kind.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
            name = fields.pop("name", None)
            if isinstance(name, ast.Constant):
                options = {
                    option: _help_in(value)
                    for option, value in fields.items()
                    if isinstance(value, ast.Call)
                }
                found[str(name.value)] = (ast.get_docstring(kind) or "").partition("\n")[0], options
    if "vdvae_repr.probing.task" in sys.modules:
        from vdvae_repr.probing.task import Task

        for known, own in Task.known.items():
            given = {
                field.name: field.metadata.get("help", "") for field in dataclasses.fields(own)
            }
            found.setdefault(known, ((own.__doc__ or "").partition("\n")[0], given))
    return found


def _help_in(call: ast.Call) -> str:
    """Return the help in a field's metadata."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    return str(ast.literal_eval(given["metadata"])["help"]) if "metadata" in given else ""


def _task_help() -> list[tuple[str, str]]:
    """Return each task with the first line of its description, and each of its options with its help."""
    lines = []
    for name, (text, options) in _tasks().items():
        lines.append((name, text))
        lines += [(f"  --{key.replace('_', '-')}", value) for key, value in options.items()]
    return lines


def _task_options(name: str, arguments: list[str]) -> dict[str, list[str]]:
    """Return the values of options that the command does not know itself, by the task's option.

    Raises:
        TaskError: no such task, or an option of another one or of none.
    """
    tasks = _tasks()
    if name not in tasks:
        raise TaskError(
            f"unknown task {name!r}{suggestion(name, list(tasks))}; the tasks are {', '.join(tasks)}"
        )
    values: dict[str, list[str]] = {}
    rest = list(arguments)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if not flag.startswith("--"):
            raise TaskError(f"{flag}: expected an option, as --layer 8x8")
        if not equals and not rest:
            raise TaskError(f"{flag}: expected a value, found none")
        option = flag.removeprefix("--").replace("-", "_")
        values.setdefault(option, []).append(value if equals else rest.pop(0))
    for option in values:
        if option not in tasks[name][1]:
            owners = [task for task, (_, options) in tasks.items() if option in options]
            whose = (
                f"an option of {' and '.join(owners)}, not" if owners else "no option of probe or"
            )
            raise TaskError(f"--{option.replace('_', '-')} is {whose} of {name}")
    return values


def _task_of(name: str, values: dict[str, list[str]]) -> Any:
    """Make a task of its name and of its options.

    Raises:
        TaskError: a value of another type.
    """
    from typing import get_args, get_type_hints

    from vdvae_repr.tasks import Task

    kind = type(Task.named(name))
    options: dict[str, Any] = {}
    for option, texts in values.items():
        hint = get_type_hints(kind)[option]
        parts = [hint, *get_args(hint)]
        leaves = [leaf for part in parts for leaf in (part, *get_args(part))]
        read = next((leaf for leaf in (int, float) if leaf in leaves), str)
        try:
            read_values = [read(text) for text in texts]
        except ValueError as error:
            words = {int: "a whole number", float: "a number"}[read]
            raise TaskError(f"--{option.replace('_', '-')}: expected {words}, {error}") from error
        many = any("Sequence" in str(part) for part in parts)
        if len(texts) > 1 and not many:
            flag = f"--{option.replace('_', '-')}"
            raise TaskError(f"{flag}: expected one value, found it given twice; leave one out")
        options[option] = tuple(read_values) if many else read_values[-1]
    return kind(**options)


@app.command(
    cls=TaskOptions,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def probe(
    context: typer.Context,
    task: Annotated[
        str,
        typer.Option(
            help="face_id, face_verification, classification, few_shot, omniglot_oneshot, factors, "
            "encoding, rsa."
        ),
    ] = "face_id",
    latents: Annotated[
        Path | None, typer.Option(help="The store to read; latents.h5, if not given.")
    ] = None,
    train: Annotated[
        Path | None, typer.Option(help="A store to learn from, in place of --latents ...")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="... and one of the same weights to be tested on.")
    ] = None,
    layer: Layer = ["all"],  # noqa: B006
    selection: Annotated[
        list[str] | None,
        typer.Option(
            help="How layers become rows: single and cumulative (if not given), joint (those of each "
            "--layer as one vector), without (each resolution), pruned. May be repeated."
        ),
    ] = None,
    atlas: Annotated[
        bool,
        typer.Option(
            "--atlas",
            help="single, cumulative, without and pruned at once, and how alike layers are.",
        ),
    ] = False,
    feature: Annotated[
        list[str] | None, typer.Option(help="A stored feature: mean, if not given; z:2, a draw.")
    ] = None,
    pool: Annotated[
        list[str] | None, typer.Option(help="none, avg, avg:GRID, or cls of tokens.")
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(help="One of the task's heads; those that answer at once if not given."),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(help="pixels, pca, random-init, shuffled-labels: all if not given; or none."),
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="A store of the same images from another model, as timm:resnet50."),
    ] = None,
    drawn: Annotated[
        Path | None,
        typer.Option(
            help="A store of draws (--z sample --draws 8 --feature z) of the same images and layers."
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for scores done; LATENTS.scores if not given.")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no scores.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the page index.html, tables (results.csv, ...) and figures."),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format", help="Formats of figures: png, if not given, pdf, svg; commas join several."
        ),
    ] = None,
    every_row: Annotated[
        bool, typer.Option("--rows", help="Print every row, not the answer alone.")
    ] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    seed: Seed = 0,
) -> None:
    """Measure what each layer is worth, with controls; rerun to go on after a stop.

    Example: vdvae-repr probe --task few_shot --ways 5 --shots 1 --latents latents.h5 --out results/
    """
    import vdvae_repr as vr
    from vdvae_repr import results
    from vdvae_repr.latents.base import Latents
    from vdvae_repr.latents.store import JoinedStore
    from vdvae_repr.output import prepare_folder

    kinds = _formats(formats or "png")
    if formats is not None and out is None:
        raise TaskError("--format: expected --out with it, found none; give the folder of figures")
    if every_row and json_lines:
        raise TaskError("--rows and --json: expected one of them, found both")
    task_options = _task_options(task, context.args)
    for name, values, known in (
        ("--control", control, (*results.CONTROLS, "none")),
        ("--selection", selection, results.SELECTIONS),
    ):
        if unknown := [value for value in values or () if value not in known]:
            hint = suggestion(unknown[0], known)
            raise TaskError(f"{name}: expected {', '.join(known)}, found {unknown[0]!r}{hint}")
    if (train is None) != (test is None):
        raise TaskError("--train and --test: expected both, found one")
    if train is not None and latents is not None:
        raise TaskError("--train and --test stand in place of --latents; leave that out")
    if atlas and selection:
        raise TaskError("--atlas chooses how layers become rows; leave --selection out")
    if control and "none" in control and len(control) > 1:
        raise TaskError("--control none: leaves all controls out; name no other beside it")
    if no_cache and cache is not None:
        raise TaskError("--cache and --no-cache: expected one of them, found both")
    if train is not None and test is not None:
        store: Latents = JoinedStore(vr.open(train), vr.open(test))
    else:
        store = vr.open(latents or Path("latents.h5"))
    others = [vr.open(path) for path in beside or ()]
    chosen_task = _task_of(task, task_options)  # what follows takes seconds to import
    from vdvae_repr.report import pictures

    if out is not None:
        prepare_folder(out, pictures.MADE)
        results.expect_made_by("probe", out)
        former = results.task_in(out)
        if former not in (None, chosen_task.name):
            _log(
                f"{out}: holds results of {former}, which those of {chosen_task.name} will replace"
            )
    with _notes_printed():
        report = vr.probe(
            store,
            chosen_task,
            layers=layer,
            features=feature,
            pools=[None if p == "none" else p for p in pool or ["none"]],
            selections=ATLAS if atlas else selection or DEFAULT,
            heads=head,
            controls=[name for name in control or results.CONTROLS if name != "none"],
            beside=others,
            drawn=None if drawn is None else vr.open(drawn),
            cache=None if no_cache else cache or "auto",
            seed=seed,
        )
    if json_lines:
        print(results.to_json_lines(report.rows), end="")
    elif every_row:
        print(report.table())
        _log(
            "* chosen on training data, or the only one, and compared with the worst of its rivals"
        )
    else:
        print(report.answer(f"every row: {out / 'results.csv' if out else '--rows'}"))
    if costs := report.sampling_costs:
        if not every_row:
            print(
                f"\n{results.sampling_table(costs)}", file=sys.stderr if json_lines else sys.stdout
            )
        _log(f"z: of {costs[0].draws} draws; p: paired test against the mean")
    if out is not None:
        for name in dict.fromkeys(feature or [store.default_feature]) if atlas else ():
            report.similarity[name] = vr.compare(store, feature=name, seed=seed, notice=_log)
        report.record["command"] = _command_line()
        report.save(out, formats=kinds)
        _log(f"to look at: {out / pictures.PAGE}")


@contextmanager
def _notes_printed() -> Iterator[None]:
    """Print what a probe logs as soon as it is known."""
    logger = logging.getLogger("vdvae_repr.probing")
    handler, level = logging.Handler(), logger.level
    handler.emit = lambda record: _log(in_options(record.getMessage()))  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # else what prints everybody's log prints these once more
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(handler)
        logger.setLevel(level)


@app.command("report")
def report_(
    results: Annotated[Path, typer.Argument(help="A folder that probe --out wrote.")],
    latents: Annotated[
        Path | None, typer.Option(help="The store that was probed; adds pictures to the page.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="What the store was extracted with, for reconstructions; its packaged model if not given."
        ),
    ] = None,
    preset: Preset = None,
    download: Download = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for index.html, or a name.html; RESULTS if not given."),
    ] = None,
) -> None:
    """Make one HTML page of results, to look at and to share; it needs no network.

    Example: vdvae-repr report results/ --latents latents.h5 --out report/
    """
    import vdvae_repr as vr
    from vdvae_repr.report import page, pictures

    if model is not None and latents is None:
        raise TaskError("--model: expected --latents with it, found none; give the store")
    if preset is not None and model is None:
        raise TaskError("--preset: expected --model with it, found none; give the model")
    if download and model is None:
        raise TaskError("--download: expected --model with it, found none; give the model")
    report = vr.Report.load(results)
    path = out or results
    if path.suffix != ".html":
        path = path / pictures.PAGE
    page.check(path)
    beside = path.parent / "results.jsonl"
    if path.name == pictures.PAGE and beside.exists() and not path.parent.samefile(results):
        raise TaskError(f"{path}: is the page of the results beside it; choose another folder")
    store = None if latents is None else vr.open(latents)
    if store is not None:
        page.expect_of_results(store, report)  # before a model is loaded for nothing
    report.page(path, store, None if store is None else _model_of(store, model, preset, download))
    _print(str(path))


def _model_of(
    store: LatentStore, model: str | None, preset: str | None, download: bool
) -> VDVAE | None:
    """Load the model that a store was extracted with: the one named, else the packaged one, if it is that."""
    from vdvae_repr.model.weights import packaged_names, weights_sha256

    if model is not None:
        return _load_vdvae(model, preset, "cpu", download)
    if store.info.model in packaged_names():
        net = _load_vdvae(store.info.model, None, "cpu", False)
        if weights_sha256(net) == store.info.weights_sha256:
            return net
    _log(f"no reconstructions: {store.info.model} is no packaged model; give it with --model")
    return None


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A store.")],
    b: Annotated[Path, typer.Argument(help="Another, of the same images.")],
    feature: Annotated[
        str | None,
        typer.Option(help="A feature that both hold; mean, or each one's first, if not given."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for similarity.csv and .png.")] = Path(),
    formats: Formats = "png",
    seed: Seed = 0,
) -> None:
    """Compare the layers of two models by debiased linear CKA, beside what shuffled images give.

    Example: vdvae-repr compare latents.h5 resnet.h5 --out similarity/
    """
    import vdvae_repr as vr
    from vdvae_repr.output import prepare_folder

    kinds = _formats(formats)
    stores = vr.open(a), vr.open(b)
    from vdvae_repr.report import pictures

    prepare_folder(out, pictures.SIMILARITY_MADE)
    found = vr.compare(*stores, feature=feature, seed=seed, notice=_log)
    rows, columns = (f"{model} ({feature})" for model, feature in found.sides)
    pictures.save_similarity(found, out, (rows, columns), kinds)
    _print(f"each layer of {rows}, and which of {columns} is most like it")
    _print("layer     most like         CKA  images shuffled")
    for name, values, shuffled in zip(found.layers, found.cka, found.shuffled, strict=True):
        best = int(values.argmax())
        like = found.other_layers[best]
        _print(f"{name:8s}  {like:12s}  {values[best]:7.3f}  {shuffled[best]:15.3f}")
    figures = [f"similarity.{kind}" for kind in kinds]
    made = ["similarity.csv", "similarity-shuffled.csv", "similarity.json", *figures]
    _print(", ".join(str(out / name) for name in made))


@app.command(cls=LongHelp)
def train(
    config: Annotated[
        str,
        typer.Argument(
            help="A preset's name, as faces64; a TOML; a run folder to go on with, or to take its "
            "configuration alone."
        ),
    ],
    data: DataOfRun = None,
    rows: Rows = None,
    data_root: DataRoot = None,
    download: Download = False,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; runs/NAME if not given.")
    ] = None,
    resume: Resume = False,
    init_from: Annotated[
        str | None,
        typer.Option(help="Weights to start from; NAME-model.th goes on with its published run."),
    ] = None,
    override: Override = [],  # noqa: B006
    crop: Crop = None,
    on_error: OnError = None,
    device: Device = "cpu",
    precision: Annotated[
        str | None, typer.Option(help="fp32, if not given, or bf16 by autocast.")
    ] = None,
    accumulate: Accumulate = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile.")
    ] = None,
    channels_last: Annotated[
        bool | None,
        typer.Option(
            "--channels-last/--no-channels-last", help="Keep activations in that memory format."
        ),
    ] = None,
    recompute: Annotated[
        list[int] | None,
        typer.Option(help="A resolution whose activations are recomputed, not kept."),
    ] = None,
    num_workers: NumWorkers = None,
    log_with: LogWith = None,
    probe_every: Annotated[
        int | None, typer.Option(min=0, help="Steps between probes of the layers; 0 for none.")
    ] = None,
    probe_data: Annotated[
        str | None,
        typer.Option(help="Labelled images to probe with; those held back if not given."),
    ] = None,
    probe_layer: Annotated[
        list[str] | None, typer.Option(help="Layers to probe; all if not given.")
    ] = None,
) -> None:
    """Train a VDVAE or a PixelCNN; torchrun divides it. Rerun with --resume after any stop.

    Example: vdvae-repr train faces64 --data photos/ --out runs/a --set train.steps=2000
    """
    import vdvae_repr as vr
    from vdvae_repr.data.datasets import DATASETS
    from vdvae_repr.encoders.download import released_file
    from vdvae_repr.model.published import PREFIX

    log = _Log(data or ("the run's" if resume else None))  # a run that is resumed knows
    if data is None and not resume:
        data = DRAWN
    _refuse_without_data(data, rows=rows, data_root=None if probe_data else data_root)
    named = probe_data in DATASETS
    own_root = None if named and data not in DATASETS else data_root  # it is of --probe-data
    elsewhere = own_root is not None or download or rows is not None
    if download and init_from is not None and init_from.startswith(PREFIX):
        released_file(init_from, download)
    folder = vr.train(
        config,
        _open(data, own_root, download, rows, log.hold, init_from) if data and elsewhere else data,
        out, resume=resume, init_from=init_from, changed=override, crop=crop, on_error=on_error,
        device=device, precision=precision, accumulate=accumulate, compile=compile,
        channels_last=channels_last, recompute=recompute or None, num_workers=num_workers,
        log_with=log_with, probe_every=probe_every, probe_layers=probe_layer or None,
        probe_data=(
            _open(probe_data, data_root, notice=log.hold)
            if probe_data and data_root and (named or data is None)
            else probe_data
        ),
        progress=log,
    )  # fmt: skip
    if _is_main_process():
        _print(str(folder))


@app.command(cls=LongHelp)
def distill(
    teacher: Annotated[
        str | None,
        typer.Option(help="A VDVAE, as for sample; faces64, or what a resumed run learned from."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Architecture of --teacher, if its shapes do not tell: a name or a TOML; give both again "
            "to resume."
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="The student's: a preset's name or a TOML; student64 if not given."),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="Layers of the teacher to predict; those of the configuration, if not given."
        ),
    ] = None,
    data: DataOfRun = None,
    rows: Rows = None,
    data_root: DataRoot = None,
    download: Download = False,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; runs/TEACHER-student if not given.")
    ] = None,
    resume: Resume = False,
    override: Override = [],  # noqa: B006
    crop: Crop = None,
    on_error: OnError = None,
    device: Device = "cpu",
    precision: Annotated[
        str | None, typer.Option(help="Of the student: fp32, if not given, or bf16 by autocast.")
    ] = None,
    accumulate: Accumulate = None,
    num_workers: NumWorkers = None,
    log_with: LogWith = None,
) -> None:
    """Train a student to predict a VDVAE's posterior. Rerun with --resume after any stop.

    Example: vdvae-repr distill --teacher faces64 --data photos/ --out runs/student
    """
    import vdvae_repr as vr
    from vdvae_repr.encoders.download import released_file
    from vdvae_repr.model.published import PREFIX

    log = _Log(data or ("the run's" if resume else None))  # a run that is resumed knows
    if not resume:
        data, teacher = data or DRAWN, teacher or "faces64"
    _refuse_without_data(data, rows=rows, data_root=data_root)
    if download and teacher is not None and teacher.startswith(PREFIX):
        released_file(teacher, download)
    taught_by: str | VDVAE | None = teacher
    if preset is not None:
        if teacher is None:
            raise TaskError("--preset: expected --teacher with it, found none; give the teacher")
        taught_by = _load_vdvae(teacher, preset, "cpu", False)
    elsewhere = data_root is not None or download or rows is not None
    folder = vr.distill(
        taught_by,
        _open(data, data_root, download, rows, log.hold, teacher) if data and elsewhere else data,
        out, config=config, layers=layer or None, resume=resume, changed=override, crop=crop,
        on_error=on_error, device=device, precision=precision, accumulate=accumulate,
        num_workers=num_workers, log_with=log_with, progress=log,
    )  # fmt: skip
    if _is_main_process():
        _print(str(folder))


@app.command(cls=LongHelp)
def evaluate(
    model: Model = "faces64",
    preset: Preset = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="What extract takes; toy-faces, or with held-back what the run was trained on."
        ),
    ] = None,
    rows: Rows = None,
    data_root: DataRoot = None,
    download: Download = False,
    split: Annotated[
        str | None,
        typer.Option(help="train, val, test, or a run's held-back; every image if not given."),
    ] = None,
    crop: Crop = None,
    resize: Resize = None,
    on_error: OnError = None,
    iw: Annotated[
        int, typer.Option(min=0, help="Samples of the importance-weighted bound; 0 leaves it out.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a forward pass.")] = 16,
    device: Device = "cpu",
    seed: Seed = 0,
    json_lines: Annotated[bool, typer.Option("--json", help="Print one JSON line.")] = False,
) -> None:
    """Score a whole split: bits per dimension, rate by layer, active units; torchrun divides it.

    Example: vdvae-repr evaluate --model runs/a --split held-back
    """
    from tqdm import tqdm

    import vdvae_repr as vr
    from vdvae_repr.training.evaluate import join_processes

    held_back = split == "held-back"
    if held_back and not (Path(model) / "config.toml").is_file():
        raise TaskError(f"--split held-back: expected a run folder as --model, found {model}")
    if data is None and not held_back:
        data = DRAWN
    _refuse_without_data(data, rows=rows, data_root=data_root)
    if data is not None:
        _refuse_missing(data)
    net = _load_generative(model, preset, join_processes(device), download)
    source = None if data is None else _open(data, data_root, download, rows, model=model)
    with tqdm(
        unit="img", leave=False, disable=not (sys.stderr.isatty() and _is_main_process())
    ) as bar:
        found = vr.evaluate(
            net, source, split=split, run=model if held_back else None, crop=crop,
            resize=resize or "bicubic",  # type: ignore[arg-type]
            on_error=on_error or "raise", batch_size=batch_size, importance_samples=iw, seed=seed,
            progress=bar.update,
        )  # fmt: skip
    if not _is_main_process():
        return
    if json_lines:
        print(found.to_json())
        return

    def between(interval: tuple[float, float] | None) -> str:
        return f", 95 % interval {interval[0]:.4f} .. {interval[1]:.4f}" if interval else ""

    count = counted(found.images, "image")
    _print(f"{found.source}, split {found.split}: {count}, seed {found.seed}")
    interval = between(found.bits_per_dim_interval)
    _print(f"{found.bits_per_dim:.4f} bits/dim{interval}; {found.nats:.1f} nats an image")
    _print(f"distortion {found.distortion_nats:.1f} nats, rate {found.rate_nats:.1f} nats an image")
    if found.importance_bits_per_dim is not None:
        bits, interval = found.importance_bits_per_dim, between(found.importance_interval)
        _print(f"importance-weighted, {iw} draws: {bits:.4f} bits/dim{interval}")
    if found.kl_nats:
        _print("layer     nats      active units")
    for name, nats in found.kl_nats.items():
        active, units = found.active_units[name]
        _print(f"{name:8s}  {nats:8.2f}  {active}/{units}")
    for name, nats in found.kl_nats_by_resolution.items():
        _print(f"all {name:8s}  {nats:.2f} nats")


@app.command()
def layers(model: AnyModel = "faces64", preset: Preset = None, download: Download = False) -> None:
    """List a model's layers: of a VDVAE the stochastic ones, of another network its stages or blocks.

    Example: vdvae-repr layers --model faces64
    """
    from vdvae_repr.encoders.layers import layers_of

    found = layers_of(model, preset=preset, download=download)
    width = max(8, *(len(spec.name) for spec in found))
    _print(f"index  {'name':{width}s}  shape         dims")
    for spec in found:
        shape = "x".join(map(str, spec.shape))
        _print(f"{spec.index:5d}  {spec.name:{width}s}  {shape:12s}  {spec.num_dims}")


@app.command("export")
def export_network(
    model: Annotated[
        str,
        typer.Argument(help="A VDVAE or a student: packaged name, run folder, .safetensors, ..."),
    ],
    out: Annotated[Path, typer.Option(help="A .onnx, or a .pt2 for torch.export.load.")],
    layer: Layer = ["all"],  # noqa: B006
    preset: Preset = None,
    download: Download = False,
) -> None:
    """Write the network that reads layers of a VDVAE or a student, to run elsewhere (latents: store export).

    Example: vdvae-repr export faces64 --layer "<=8x8" --out faces64.onnx
    """
    import vdvae_repr as vr
    from vdvae_repr.encoders.load import refuse_unfetched

    refuse_unfetched(model, "a VDVAE or a student")
    net = vr.load(model, preset=preset, download=download)
    path = vr.export_model(net, out, layers=layer)  # type: ignore[arg-type]  # others are refused
    _print(f"{path}: {counted(path.stat().st_size, 'byte')}")


@app.command()
def sample(
    model: Model = "faces64",
    preset: Preset = None,
    download: Download = False,
    count: Annotated[int, typer.Option(min=1, help="Images to draw.")] = 16,
    temperature: Temperature = 0.8,
    out: Annotated[Path, typer.Option(help="A PNG contact sheet.")] = Path("samples.png"),
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Draw images from the model onto a contact sheet.

    Example: vdvae-repr sample --count 32 --temperature 0.9 --out samples.png
    """
    import math

    from vdvae_repr.data.sheet import check_picture, save_sheet

    check_picture(out)
    if not math.isfinite(temperature):
        raise TaskError(f"--temperature: expected a finite number, found {temperature}")
    net = _load_generative(model, preset, device, download)
    save_sheet(net.sample(count, temperature, seed), out, labels=[f"temperature {temperature:g}"])
    _print(str(out))


@app.command(cls=LongHelp)
def decode(
    latents: Annotated[Path, typer.Argument(help="A store, extracted or imported.")],
    out: Annotated[Path, typer.Option(help="Folder for one PNG an image, named by its id.")],
    model: Annotated[
        str | None, typer.Option(help="With the store's weights; its own name if not given.")
    ] = None,
    preset: Preset = None,
    download: Download = False,
    layer: Layer = ["all"],  # noqa: B006
    first: Annotated[
        int | None, typer.Option(min=1, help="Decode the first K layers alone.")
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option("--id", help="An image to decode; all if not given.")
    ] = None,
    fine_from: Annotated[
        str | None, typer.Option(help="Id of an image that gives the stored layers not chosen.")
    ] = None,
    rest: Annotated[
        str, typer.Option(help="Layers that are missing: the prior's mean, or sample.")
    ] = "mean",
    pixels: Annotated[
        str, typer.Option(help="Pixels: the likelihood's mean, or sample, a draw of it.")
    ] = "mean",
    temperature: Temperature = 1.0,
    sheet: Annotated[
        Path | None,
        typer.Option(
            help="Write a contact sheet of 64 images too, spread over all, each beside its original."
        ),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(help="Store that holds the originals, where LATENTS holds no images."),
    ] = None,
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Turn stored latents back into images.

    Example: vdvae-repr decode predicted.h5 --out images/ --sheet sheet.png
    """
    import numpy as np

    import vdvae_repr as vr
    from vdvae_repr.data.sheet import check_picture, save_picture, save_sheet, spread
    from vdvae_repr.latents.decode import decodable_feature, originals_of, picture_paths

    for option, value in (("--rest", rest), ("--pixels", pixels)):
        if value not in ("mean", "sample"):
            raise TaskError(f"{option}: expected mean or sample, found {value!r}")
    if first is not None and layer != ["all"]:
        raise TaskError("--first and --layer both choose layers; give one of them")
    if like is not None and sheet is None:
        raise TaskError("--like gives the originals that --sheet shows; give --sheet too")
    if image is not None and (twice := [i for at, i in enumerate(image) if i in image[:at]]):
        raise TaskError(f"--id: expected each image once, found {twice[0]!r} twice; leave one out")
    store = vr.open(latents)
    if first is not None and first > len(store.layers):
        raise TaskError(f"--first: expected {len(store.layers)} layers at most, found {first}")
    decodable_feature(store)  # before a model is loaded for nothing
    paths = picture_paths(store.ids, out)
    for path in paths.values() if image is None else [paths[i] for i in image if i in paths]:
        check_picture(path)
    chosen: list[str] = []
    if sheet is not None:
        check_picture(sheet)
        if sheet.resolve() in {path.resolve() for path in paths.values()}:
            raise TaskError(f"--sheet: {sheet} is the picture of an image; choose another name")
        among = list(store.ids if image is None else image)
        chosen = [among[number] for number in spread(len(among))]
        originals = originals_of(store, store if like is None else vr.open(like), chosen)
        if not originals:
            remedy = "--like STORE does" if like is None else "give --like a store that holds them"
            _log(f"{like or latents}: holds no images, so the sheet shows no originals; {remedy}")
    net = _load_vdvae_of(store, model, preset, device, download)
    shown: dict[str, np.ndarray] = {}
    done = 0
    for ids, images in store.decode(
        net,
        "all" if layer == ["all"] else layer,
        first=first,
        ids=image,
        fine_from=fine_from,
        rest="sample" if rest == "sample" else "mean",
        pixels="sample" if pixels == "sample" else "mean",
        temperature=temperature,
        seed=seed,
    ):
        for image_id, values in zip(ids, images, strict=True):
            save_picture(values, paths[image_id])
            if image_id in chosen:
                shown[image_id] = values
        done += len(ids)
    if sheet is not None and originals:
        pairs = [pixels for i, own in shown.items() for pixels in (originals[i], own)]
        titles = ["original", "rebuilt"] * min(4, len(shown))
        save_sheet(np.stack(pairs), sheet, titles=titles, captions=list(shown))
    elif sheet is not None:
        save_sheet(np.stack(list(shown.values())), sheet, captions=list(shown))
    _print(f"{out}: {counted(done, 'image')}")
    if sheet is not None:
        _print(f"{sheet}: {_on_sheet(len(among))}")


@store_app.command()
def export(
    path: Path,
    out: Annotated[Path, typer.Option(help="A .npz, or a .npy with a .json beside it.")],
    layer: Layer = ["all"],  # noqa: B006
    feature: Annotated[
        str | None, typer.Option(help="A stored feature: mean, if not given; z:2, a draw.")
    ] = None,
    pool: Annotated[str | None, typer.Option(help="avg, avg:GRID, or cls of tokens.")] = None,
    split: Annotated[str | None, typer.Option(help="Write the images of this split alone.")] = None,
) -> None:
    """Write one flat matrix, layers side by side in order, with ids and shapes.

    Example: vdvae-repr store export latents.h5 --layer 0:31 --out latents.npz
    """
    import vdvae_repr as vr

    with vr.open(path) as store:
        rows, columns = store.export(out, layer, feature=feature, pool=pool, split=split)
    _print(f"{out}: {rows} images x {columns} columns")


@store_app.command("import")
def import_(
    matrix: Annotated[Path, typer.Argument(help="Predicted latents, .npy or .npz.")],
    like: Annotated[Path, typer.Option(help="The store whose images and layers they predict.")],
    out: Annotated[Path, typer.Option(help="The store to write.")],
    layer: Layer = ["all"],  # noqa: B006
    split: Annotated[
        str | None, typer.Option(help="The split whose images the rows are, in their order.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a finished store.")] = False,
) -> None:
    """Make a store of predicted latents, so that they can be decoded.

    Example: vdvae-repr store import predicted.npy --like latents.h5 --split test --out predicted.h5
    """
    import vdvae_repr as vr

    store = vr.import_latents(matrix, vr.open(like), out, layer, split=split, overwrite=overwrite)
    _print(f"{out}: {counted(len(store), 'image')}, {counted(len(store.layers), 'layer')}")
    if store.checksums is not None:
        _log(f"checksums of images are taken by ids from {like}; {NOT_SEEN}")


@store_app.command()
def info(path: Path) -> None:
    """Print what a store holds.

    Example: vdvae-repr store info latents.h5
    """
    import vdvae_repr as vr
    from vdvae_repr.data.names import number_of_classes

    store = vr.open(path)
    about = store.info
    taken = about.is_predicted and store.checksums is not None
    lines = [
        ("model", about.model),
        ("weights_sha256", about.weights_sha256),
        ("source", about.source),
        ("images", f"{len(store)}, {counted(number_of_classes(store.labels), 'class')}"),
        *(("left out", item["reason"]) for item in about.skipped),
        *([("checksums", f"taken by ids from the store it is like; {NOT_SEEN}")] if taken else []),
        ("of each image", about.images_in_words),
        ("layers", ", ".join(spec.name for spec in store.layers)),
        ("features", ", ".join(store.features)),
    ]
    for key in ("z", "draws", "seed", "mirror", "pool", "dtype", "precision", "layout", "created"):
        value = getattr(about, key)  # imported predictions have some of them
        if value is not None:
            lines.append((key, {True: "yes", False: "no"}[value] if key == "mirror" else value))
    for key, value in lines:
        print(_wrapped(printable(str(value)), f"{key:15s} "))


@store_app.command()
def verify(path: Path) -> None:
    """Read a whole store against its checksums.

    Example: vdvae-repr store verify latents.h5
    """
    import vdvae_repr as vr

    with vr.open(path) as store:
        for line in store.verify():
            _print(f"{path}: {line}")
    _print(f"{path}: whole")


@brain_app.command()
def nsd(
    betas: Annotated[Path, typer.Option(help="Folder of betas_session01.hdf5, ...")],
    design: Annotated[Path, typer.Option(help="nsd_expdesign.mat.")],
    out: Annotated[
        Path, typer.Option(help="The .npz to write; regions go into a table beside it.")
    ],
    subject: Annotated[
        int | None,
        typer.Option(min=1, help="The subject's number; that of subj01 in paths, if not given."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Voxels to take, as nsdgeneral.nii.gz; all if not given.")
    ] = None,
    roi: Annotated[
        list[Path] | None,
        typer.Option(help="Regions by number, as prf-visualrois.nii.gz. May be repeated."),
    ] = None,
) -> None:
    """Gather one subject's responses from the Natural Scenes Dataset's own files.

    Example: vdvae-repr brain nsd --betas subj01/betas/ --design design.mat --mask roi.nii.gz --out bold.npz
    """
    import vdvae_repr as vr

    vr.brain.NSDResponses.expect_place(out)  # before it takes time
    found = vr.brain.read_nsd(
        betas, design, subject=subject, mask=mask, rois=roi or (), progress=_log
    )
    for note in found.notes:
        _log(note)
    repetitions, images, voxels = found.values.shape
    for path in found.save(out):
        _print(str(path))
    _print(f"{images} images, seen {repetitions} times at most, by {voxels} voxels")


@brain_app.command()
def fit(
    responses: Responses,
    latents: Annotated[Path, typer.Option(help="The store of the images' latents.")] = Path(
        "latents.h5"
    ),
    out: Annotated[Path, typer.Option(help="The decoder to write.")] = Path("decoder.npz"),
    layer: Layer = ["all"],  # noqa: B006
    alpha: Annotated[
        float | None,
        typer.Option(help="The ridge penalty; by leave-one-out for each layer, if not given."),
    ] = None,
    split: Annotated[str, typer.Option(help="The split to fit on, or all.")] = "train",
    overwrite: Annotated[bool, typer.Option(help="Replace a decoder.")] = False,
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Fit ridge regressions from responses to latents; no coefficients are written.

    Example: vdvae-repr brain fit --responses bold.npz:responses --layer 0:31 --alpha 50000
    """
    import vdvae_repr as vr

    vr.brain.Decoder.expect_place(out, overwrite=overwrite)  # before it takes time
    with vr.open(latents) as store:
        decoder = vr.brain.fit(
            responses,
            store,
            layers=layer,
            alpha=alpha,
            split=None if split == "all" else split,
            seed=seed,
            device=device,
        )
    for note in decoder.notes:
        _log(note)
    decoder.save(out, overwrite=overwrite)
    _print(
        f"{out}: {len(decoder.voxels)} voxels to {counted(len(decoder.layers), 'layer')}, "
        f"{counted(len(decoder.ids), 'image')}"
    )


@brain_app.command()
def predict(
    responses: Responses,
    decoder: Annotated[Path, typer.Argument(help="What fit wrote.")] = Path("decoder.npz"),
    latents: Annotated[
        Path, typer.Option(help="The store that was fitted on, with the images to predict.")
    ] = Path("latents.h5"),
    out: Annotated[Path, typer.Option(help="The store to write.")] = Path("predicted.h5"),
    split: Annotated[
        str, typer.Option(help="The split to predict, or all that was not fitted on.")
    ] = "test",
    as_regressed: Annotated[
        bool,
        typer.Option(
            "--as-regressed",
            help="Keep predictions as they are, without the training images' mean and deviation.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace a finished store.")] = False,
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Predict latents from responses, and say which layers are predicted at all.

    Example: vdvae-repr brain predict decoder.npz --responses bold.npz:responses --out predicted.h5
    """
    import vdvae_repr as vr

    found = vr.brain.Decoder.load(decoder).predict(
        responses,
        vr.open(latents),
        out,
        split=None if split == "all" else split,
        restandardise=not as_regressed,
        overwrite=overwrite,
        seed=seed,
        device=device,
        progress=lambda name: _log(f"predicted {name}"),
    )
    for note in found.notes:
        _log(note)
    _print("layer       dims     alpha      R2  pearson   95 % of null       p       q")
    for row in found.layers.itertuples():
        _print(
            f"{row.layer:9s}{row.dims:7d}  {row.alpha:8.3g}  {row.r2:6.3f}  {row.pearson:7.3f}  "
            f"{row.null_r2:13.3f}  {row.p_value:6.4f}  {row.q_value:6.4f}"
        )
    _print(f"predicted beyond chance: {_layers_told(found.told, len(found.layers))}")
    _print(f"{out}: {counted(len(found.store), 'image')}")


@brain_app.command()
def score(
    predicted: Annotated[Path, typer.Argument(help="Predicted latents.")] = Path("predicted.h5"),
    latents: Annotated[Path, typer.Option(help="The store that holds the originals.")] = Path(
        "latents.h5"
    ),
    model: Annotated[
        str | None, typer.Option(help="With the store's weights; its own name if not given.")
    ] = None,
    preset: Preset = None,
    download: Download = False,
    layer: Layer = ["all"],  # noqa: B006
    rest: Annotated[
        str, typer.Option(help="Layers that are not decoded: the prior's mean, or sample.")
    ] = "mean",
    encoder: Annotated[
        str | None, typer.Option(help="What identifies images, as timm:resnet50.")
    ] = None,
    encoder_layer: Annotated[
        str | None, typer.Option(help="A layer of it; its last if not given.")
    ] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="Print one JSON line.")] = False,
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Decode predicted latents, and score the images: PixCorr, SSIM, two-way identification.

    Example: vdvae-repr brain score predicted.h5 --latents latents.h5 --layer 1x1,4x4
    """
    import json

    import numpy as np

    import vdvae_repr as vr
    from vdvae_repr.brain.extra import needed
    from vdvae_repr.latents.decode import originals_of
    from vdvae_repr.model.layers import select_layers

    if rest not in ("mean", "sample"):
        raise TaskError(f"--rest: expected mean or sample, found {rest!r}")
    if encoder_layer is not None and encoder is None:
        raise TaskError("--encoder-layer: expected --encoder with it, found none")
    store, originals = vr.open(predicted), vr.open(latents)
    known = originals_of(store, originals, store.ids)
    if not known:
        raise TaskError(f"--latents: {latents} holds no images; extract without --no-images")
    net = _load_vdvae_of(store, model, preset, device, download)
    # What would be refused is refused before images are decoded.
    needed("skimage.metrics", "scoring images")
    identifier = None if encoder is None else vr.load(encoder, device=device, download=download)
    if identifier is not None and encoder_layer is not None:
        select_layers(identifier.layers, encoder_layer)
    decoded = np.concatenate(
        [
            images
            for _, images in store.decode(
                net,
                "all" if layer == ["all"] else layer,
                rest="sample" if rest == "sample" else "mean",
                seed=seed,
            )
        ]
    )
    found = vr.brain.score_images(
        decoded,
        np.stack([known[image_id] for image_id in store.ids]),
        identifier,
        encoder_layer,
    )
    if json_lines:
        print(json.dumps(found.to_dict(), allow_nan=False))
        return
    _print(f"{predicted}: {counted(found.images, 'image')}")
    _print(f"PixCorr  {found.pixcorr:.3f}   (another's original: {found.shuffled_pixcorr:.3f})")
    _print(f"SSIM     {found.ssim:.3f}   (another's original: {found.shuffled_ssim:.3f})")
    if found.identification is not None:
        _print(f"two-way identification by {found.encoder}: {found.identification:.3f}, chance 0.5")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for what it makes.")] = Path("demo"),
) -> None:
    """See what the packaged model knows of drawn faces: pictures, an answer, a page.

    Example: vdvae-repr demo --out demo/
    """
    import vdvae_repr as vr
    from vdvae_repr.data.sheet import check_picture
    from vdvae_repr.output import prepare_folder
    from vdvae_repr.report import pictures, showcase
    from vdvae_repr.results import expect_made_by

    prepare_folder(out, pictures.MADE)
    expect_made_by("demo", out)
    sheets = {
        name: out / f"{name}.png" for name in ("reconstructions", "neighbours", "interpolation")
    }
    for path in sheets.values():
        check_picture(path)
    net = _load_vdvae("faces64", None, "cpu", False)
    faces = vr.extract(net, "toy-faces:40x6", out / "faces.h5", report=_log)
    people = len(faces.label_names)
    print(f"{len(faces)} drawn faces of {people} people, read by faces64, which has seen")
    print("photographs of other people and never a drawing.")

    print("\nWhat do the layers hold? From the first to the last of each resolution:")
    sheet, rungs = showcase.reconstructions(faces, net)
    for rung in rungs:
        print(
            f"  {rung.name:9s}{rung.layers:3d} of {len(net.layers)} layers {rung.nats:7,.0f} nats"
            f"   error of rebuilding {rung.error:4.1f} of 255"
        )
    sheet.save(sheets["reconstructions"])
    _print(f"{sheets['reconstructions']}: from more and more layers: colours first, eyes last.")

    print("\nWhom does a layer find alike? How often the nearest is the same person:")
    sheet, shares = showcase.neighbours(faces)
    print("  " + "   ".join(f"{name} {share:.1%}" for name, share in shares.items()))
    sheet.save(sheets["neighbours"])
    _print(f"{sheets['neighbours']}: a face, then its nearest; green: the same person.")

    print("\nHow does one face become another?")
    showcase.interpolation(faces, net).save(sheets["interpolation"])
    _print(f"{sheets['interpolation']}: A takes on B's layers, coarse ones first.")

    print("\nWho is it? Half of each person's images are known:")
    with _notes_printed():
        report = vr.probe(faces, "face_id", layers="<=16x16", cache=None)
    report.record["command"] = _command_line()
    report.save(out, latents=faces, model=net)
    print(report.answer(f"every row: {out / 'results.csv'}"))
    print("That is of drawings; README's picture asks the same of photographs.")
    print()
    _print(f"{out / pictures.PAGE}: all of it on one page; open it in a browser.")


def _open(
    data: str,
    root: str | None = None,
    download: bool = False,
    rows: str | None = None,
    notice: Callable[[str], None] | None = None,
    model: str | None = None,
) -> Source:
    """Open what --data names, and say once what was left out of it; `notice` receives that, if given.

    Args:
        data: of --data.
        root: of --data-root.
        download: whether --download is given.
        rows: of --rows.
        notice: receives lines.
        model: whose published weights --download may be meant for, if any.
    """
    import vdvae_repr as vr
    from vdvae_repr.data.datasets import DATASETS

    if model is not None and model.startswith(PUBLISHED) and data not in DATASETS:
        download = False  # it is of the weights
    say = (notice or _log) if _is_main_process() else lambda line: None
    return vr.open_source(
        data, root=root, download=download, rows=rows, notice=lambda line: say(in_options(line))
    )


class _Log:
    """Prints lines; before the first those held so far, so that none comes before an error of options.

    The first of them says that --data was not given, where it was not.
    """

    def __init__(self, data: str | None) -> None:
        self._held = [] if data else [f"no --data: the images are {DRAWN}, which are drawn"]

    def hold(self, line: str) -> None:
        """Keep a line until there is another one."""
        self._held.append(line)

    def __call__(self, line: str) -> None:
        """Print what is held, and a line."""
        for earlier in self._held:
            _log(earlier)
        self._held.clear()
        _log(line)


def _refuse_missing(data: str) -> None:
    """Refuse a file that is not there, by its name alone, before what reads files is imported.

    Raises:
        DataError: no such file.
    """
    path = Path(data.rpartition(":")[0] if ":" in data else data)
    a_file = bool(path.suffix) or "/" in data  # names of data sets have neither
    pattern = any(letter in data for letter in "*?[{")
    if a_file and not pattern and not path.exists() and not Path(data).exists():
        raise DataError(f"{data}: no such folder or file")


def _formats(text: str) -> list[str]:
    """Return formats of figures that commas join."""
    kinds = [kind.strip() for kind in text.split(",")]
    refuse_formats(kinds)
    return kinds


def _refuse_without_data(data: str | None, **options: str | None) -> None:
    """Refuse what chooses among images, or says where they lie, where a run's own images are taken.

    Raises:
        TaskError: there is such an option.
    """
    if data is None and (given := [key for key, value in options.items() if value is not None]):
        flags = " and ".join("--" + key.replace("_", "-") for key in given)
        raise TaskError(
            f"{flags}: expected --data with it, found none; give --data, or leave it out"
        )


def _load_vdvae(model: str, preset: str | None, device: str, download: bool) -> VDVAE:
    """Load what only a VDVAE can do."""
    import vdvae_repr as vr
    from vdvae_repr.encoders.load import refuse_unfetched

    refuse_unfetched(model, "a VDVAE, which gives images back")
    net = vr.load(model, preset=preset, device=device, download=download)
    if isinstance(net, vr.PixelCNN):
        raise TaskError(net.about_latents)
    if isinstance(net, vr.Student):
        raise TaskError(net.about_images)
    if not isinstance(net, vr.VDVAE):
        raise TaskError(
            f"{model}: expected a VDVAE, which gives images back; other encoders can be extracted, probed "
            "and compared"
        )
    return net


def _load_vdvae_of(
    store: LatentStore, model: str | None, preset: str | None, device: str, download: bool
) -> VDVAE:
    """Load the VDVAE that is named, else that whose name a store keeps, which a run's own is not found by."""
    from vdvae_repr.model.weights import packaged_names

    name = model or store.info.model
    try:
        return _load_vdvae(name, preset, device, download)
    except CheckpointError as error:
        known = name in packaged_names() or any(mark in name for mark in ":@")
        if model is not None or known or Path(name).exists():
            raise
        raise TaskError(
            f"{store.path}: was extracted with {name}, which is no packaged model; give --model, its run "
            "folder or file"
        ) from error


def _load_generative(
    model: str, preset: str | None, device: str, download: bool
) -> VDVAE | PixelCNN:
    """Load what has a likelihood, and can be drawn from."""
    import vdvae_repr as vr
    from vdvae_repr.encoders.load import refuse_unfetched

    refuse_unfetched(model, "a VDVAE or a PixelCNN, which have a likelihood")
    net = vr.load(model, preset=preset, device=device, download=download)
    if isinstance(net, vr.Student):
        raise TaskError(net.about_images)
    if not isinstance(net, vr.VDVAE | vr.PixelCNN):
        raise TaskError(
            f"{model}: expected a VDVAE or a PixelCNN, which have a likelihood; other encoders can be "
            "extracted, probed and compared"
        )
    return net


def _layers_told(told: Sequence[str], count: int) -> str:
    """Say which of so many layers are predicted, and how to decode them where these are some."""
    if not told:
        return "no layer"
    if len(told) == count:
        return f"all {count} layers" if count > 1 else f"the only layer, {told[0]}"
    return f"{len(told)} of {count} layers; decode --layer {','.join(told)}"


def _command_line() -> str:
    """Return the command as it was given."""
    return shlex.join(["vdvae-repr", *sys.argv[1:]])


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _print(line: str) -> None:
    """Print a line of results; names from files that stand in it move no cursor."""
    print(printable(line))


def _on_sheet(count: int) -> str:
    """Say how many of so many images a sheet shows."""
    from vdvae_repr.data.sheet import spread

    shown = len(spread(count))
    more = "" if shown == count else f" of {count}, spread over them,"
    return f"{counted(shown, 'image')}{more}"


def _wrapped(text: str, before: str = "") -> str:
    """Break a text into lines of 80 columns between words, of which names with hyphens are one."""
    return textwrap.fill(
        text,
        80,
        initial_indent=before,
        subsequent_indent=" " * len(before),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _log(line: str) -> None:
    text = printable(line)
    text = _wrapped(text) if sys.stderr.isatty() else text
    if (bars := sys.modules.get("tqdm")) is not None:  # above a bar that is shown
        bars.tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr)


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next batch: pages given back and taken anew cost a tenth."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD


_WARNED: set[tuple[str, str, int]] = set()  # Python forgets them where filters change


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of this package as one line, and others' as Python does, each once."""
    if (place := (str(message), filename, lineno)) in _WARNED:
        return
    _WARNED.add(place)
    if Path(filename).is_relative_to(Path(__file__).parent):
        _log(f"vdvae-repr: warning: {in_options(str(message))}")
    else:
        for text in warnings.formatwarning(message, category, filename, lineno, line).splitlines():
            _log(text)


class _LogLines(logging.Handler):
    """Prints what is logged, by this package or another, line by line."""

    def emit(self, record: logging.LogRecord) -> None:
        ours = record.name.partition(".")[0] == __name__.partition(".")[0]
        text = record.getMessage()
        for line in (in_options(text) if ours else text).splitlines():
            _log(f"{record.name.partition('.')[0].replace('_', '-')}: {line}")


@cache
def _command() -> Any:
    """Return the command line that typer makes of `app`: of hundreds of options, so made once."""
    return typer.main.get_command(app)


def main() -> None:
    """Run the command line; errors become one line and an exit code, warnings of the package a line."""
    _WARNED.clear()
    warnings.showwarning = _show_warning
    # Pillow's warnings: of images that are too large an error follows, of tags nothing is lost.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.lastResort = _LogLines(logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal's encoding lacks is escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            _refuse_empty(sys.argv[1:])
            _refuse_twice(sys.argv[1:])
            _command()()
        except SystemExit as stopped:
            if stopped.code == 130:  # typer's, after Ctrl-C
                command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
                how = "go on with --resume" if command == "train" else "rerun the same command"
                _log(f"vdvae-repr: interrupted; {how}")
            elif stopped.code == 1:  # typer's, where the standard output was closed
                raise BrokenPipeError(errno.EPIPE, "Broken pipe") from stopped
            sys.stdout.flush()
            raise
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # what a library written in Rust raises is no Exception
        if os.environ.get("VDVAE_REPR_DEBUG"):
            raise
        if isinstance(error, BrokenPipeError):  # nothing is left that Python could flush at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _log(f"vdvae-repr: {_told(error)}")
        sys.exit(143 if isinstance(error, Terminated) else 2)


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse an argument of no text, which comes of a variable of the shell that is not set.

    It would stand for the working folder, or for an option that was not given.

    Raises:
        TaskError: names the option.
    """
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, _, value = argument.partition("=")
        if not argument.strip():
            option = before if before.startswith("--") and "=" not in before else "an argument"
        elif not option.startswith("--") or "=" not in argument or value.strip():
            continue
        raise TaskError(f"{option}: expected a value, found an empty text; is a variable not set?")


def _refuse_twice(arguments: Sequence[str]) -> None:
    """Refuse an option that takes one value and is given several times: all but the last would be ignored.

    Raises:
        TaskError: names the option.
    """
    command = _command()
    words = list(arguments)
    while words and (inner := getattr(command, "commands", {}).get(words[0])):
        command = inner
        words.pop(0)
    known = {
        flag: parameter
        for parameter in command.params
        for flag in (*parameter.opts, *parameter.secondary_opts)
        if flag.startswith("--")
    }
    seen: set[str] = set()
    while words:
        flag, equals, _ = words.pop(0).partition("=")
        if flag == "--":
            return
        if (parameter := known.get(flag)) is None:
            continue
        if not (equals or parameter.is_flag) and words:
            words.pop(0)
        if parameter.name in seen and not parameter.multiple:
            raise TaskError(f"{flag}: expected one value, found it given twice; leave one out")
        seen.add(parameter.name)


def in_options(message: str) -> str:
    """Return a message of the library, which names parameters, with the command line's options.

    Examples:
        >>> in_options('choose another path, or overwrite=True')
        'choose another path, or --overwrite'
        >>> in_options('extract with features="z", images=False')
        'extract with --feature z, --no-images'
        >>> in_options("CIFAR10('data', download=True) gets it")
        "CIFAR10('data', download=True) gets it"
        >>> in_options('fetch it with vr.load("openai:imagenet64", download=True)')
        'fetch it with --download'
    """
    options = _options()

    def option(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name is None:
            own = match[0].startswith(("vr.load(", "vr.open_source("))  # commands call them
            return in_options(match[0][:-1].rpartition(", ")[2]) if own else match[0]
        name = f"no_{name}" if value in ("False", "None") else name
        flag = (
            options.get(name) or options.get(name.removesuffix("s")) or options.get(f"data_{name}")
        )
        if flag is None or value in ("True", "False", "None"):
            return flag or match[0]
        return f"{flag} {value if ' ' in value else value.strip(QUOTE)}"

    return PARAMETER.sub(option, message)


@cache
def _options() -> dict[str, str]:
    """Return the options of all commands, by the names of the parameters they stand for."""
    found = {"no_restandardise": "--as-regressed", "no_split": "--split all"}
    waiting = [_command()]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        flags = [flag for parameter in command.params for flag in parameter.opts]
        found |= {flag[2:].replace("-", "_"): flag for flag in flags if flag.startswith("--")}
    of_tasks = [option for _, options in _tasks().values() for option in options]
    return found | {option: f"--{option.replace('_', '-')}" for option in of_tasks}


def _told(error: BaseException) -> str:
    """Return what happened and what to do, in one line."""
    if isinstance(error, VDVAEReprError):
        return in_options(str(error))
    if isinstance(error, BrokenPipeError):
        return "the standard output was closed before everything was printed"
    if isinstance(error, OSError) and error.strerror:  # where a command writes, and no store
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return f"{where}{error.strerror}; {'make room, or ' if full else ''}choose another --out"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return (
            "out of memory; take fewer images at once (--batch-size), fewer layers, or --pool avg"
        )
    if isinstance(error, RecursionError):
        return "a file is nested too deeply to be read; --debug shows where"
    return f"unexpected {type(error).__name__}: {first_line(error)}; --debug shows where"


if __name__ == "__main__":
    main()

"""`fewstep train`, `distill` and `compare`: recipes as commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from fewstep import recipes
from fewstep.cli.arguments import Device, next_step, with_config
from fewstep.cli.parsing import call_settings
from fewstep.recipes.base import REQUIRED
from fewstep.runtime import outputs
from fewstep.runtime.display import visible_output
from fewstep.runtime.launch import command_line, launched
from fewstep.train.options import RunOptions

if TYPE_CHECKING:
    from fewstep.train.evaluation import Evaluation
    from fewstep.train.settings import Run


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """Options of every run."""

    out: Path = REQUIRED
    """Folder of the run; repeat the command to resume it."""
    device: str | None = None
    """Device: cpu, cuda, cuda:1, ...; if unset, a GPU if there is one, else the CPU."""
    fresh: bool = False
    """Delete the run in the folder and start over."""
    dry_run: bool = False
    """Print what the run would do, how long it would take and how much memory it would need; write nothing."""
    hours: float | None = None
    """Train for as long as fits into this many hours on this machine, instead of for --until images; small:teacher also
    takes a smaller network if the time is short."""
    transfer: str | None = None
    """Initialize the network (with distill, the generator) with other weights, matched by name: a model or run folder,
    hf://owner/name, an upstream .pkl or .pt, or its URL."""
    eval_every: int | None = None
    """Evaluate the EMA model after every N training images and keep the best in best/; never if unset."""
    eval_metrics: str = "fd_pixels"
    """Metrics, such as fid,fd_dinov2 (see fewstep eval); the first one selects the best model."""
    eval_images: int = 10_000
    """Number of images generated for each evaluation."""
    eval_reference: str | None = None
    """Reference images or statistics (see fewstep eval); the training images if unset."""

    def of_run(self) -> dict[str, Any]:
        """These options as arguments of `Run`."""
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(RunOptions)}
        return {**shared, "evaluation": self.evaluation()}

    def evaluation(self) -> Evaluation | None:
        from fewstep.io.reference_files import open_reference
        from fewstep.train.evaluation import Evaluation

        if self.eval_every is None:
            for f in dataclasses.fields(self):
                if f.name.startswith("eval_") and getattr(self, f.name) != f.default:
                    raise ValueError(f"--{f.name.replace('_', '-')} has no effect without --eval-every IMAGES")
            return None
        reference = None if self.eval_reference is None else open_reference(self.eval_reference)
        return Evaluation(self.eval_every, tuple(self.eval_metrics.split(",")), reference, self.eval_images)


def parsed(name: str, words: Sequence[str], prog: str) -> tuple[Any, Options]:
    """A recipe with the settings that the command line gives it, and the options of its run."""
    recipe = recipes.get(name)
    if clash := {f.name for f in dataclasses.fields(recipe)} & {f.name for f in dataclasses.fields(Options)}:
        raise ValueError(
            f"the recipe's options {', '.join(sorted(clash))} are those of the command itself; rename them"
        )
    about = recipes.TABLE.get(name)
    text = "" if about is None else f"{about.summary}\n\n{about.result}"
    recipe, options = call_settings(recipe, Options(), words, prog, text)
    if options.hours is not None and "--until" in {word.partition("=")[0] for word in words}:
        raise ValueError("--hours and --until both set the length of the training; give one of them")
    return recipe, options


def fit_recipe(argv: Sequence[str], command: str) -> None:
    """`fewstep train|distill RECIPE [options of the recipe] --out FOLDER [--fresh]`."""
    if not argv or argv[0].startswith("-"):
        usage = f"usage: fewstep {command} RECIPE --out FOLDER [options of the recipe]"
        if argv and argv[0] in ("-h", "--help"):
            print(f"{usage}\n\nfewstep {command} RECIPE --help shows the options of one. Recipes:\n")
            print_rows({name: row for name, row in recipes.TABLE.items() if command_of(row.settings) == command})
            return
        raise ValueError(
            f"expected a recipe first; got {argv[0] if argv else 'none'}; {usage}; fewstep recipes lists them"
        )
    name, *rest = argv
    if (wanted := command_of(recipes.get(name))) != command:
        needs = "needs a" if wanted == "distill" else "has no"
        raise ValueError(f"the recipe {name} {needs} teacher; use: fewstep {wanted} {name}")
    recipe, options = parsed(name, with_config(rest), f"fewstep {command} {name}")
    train(recipe, options, command_line([command, *argv]))


def command_of(recipe: Any) -> str:
    """The command that runs a recipe: distill if it has a teacher, else train."""
    return "distill" if any(f.name == "teacher" for f in dataclasses.fields(recipe)) else "train"


def train(recipe: Any, options: Options, command: str) -> None:
    """Make the run of a recipe and train it."""
    from fewstep.data.prepare import temporary_packs
    from fewstep.io.model_folder import card
    from fewstep.runtime.distributed import process_group, rank, use
    from fewstep.train.loop import fit
    from fewstep.train.transfer import transfer

    use(options.device)
    inputs = [getattr(recipe, f.name) for f in dataclasses.fields(recipe)]
    outputs.folder(options.out, apart=[value for value in inputs if isinstance(value, (str, Path))])
    with temporary_packs() if options.dry_run else nullcontext():
        if options.hours is not None:
            recipe = within_hours(recipe, options, options.hours)
        run = recipes.build(recipe, **options.of_run(), command=command)
        with process_group(), visible_output():
            if options.transfer is not None:
                run = transfer(run, options.transfer)
                if rank() == 0:
                    print(run.transfer)
            announce(recipe, run, options)
            if options.dry_run:
                return
            fit(run, options.out, fresh=options.fresh)
            if rank() == 0:
                next_one = next_step("sample", options.out, "--grid", "grid.png")
                print(f"{options.out}: trained to {card(options.out).nimg:,} images; {next_one}")


def within_hours(recipe: Any, options: Options, hours: float) -> Any:
    """The recipe with the length that fits into a time on this machine, and with a smaller network if it has one for that.

    A run that is there already keeps what it began with.
    """
    from fewstep.runtime.files import read_json
    from fewstep.train import estimate

    if not hours > 0:
        raise ValueError(f"--hours must be above 0; got {hours:g}")
    if launched().world > 1:
        raise ValueError("--hours measures a single process; under torchrun give --until, with --dry-run for the time")
    if not any(f.name == "until" for f in dataclasses.fields(recipe)):
        raise ValueError(f"--hours sets the length, and {type(recipe).__name__} has no setting until")
    record = options.out / "run.json"
    if record.exists() and not options.fresh:
        settings = read_json(record)["recipe"]["settings"]
        return dataclasses.replace(recipe, **{name: settings[name] for name in ("until", *fitted(recipe))})
    while True:
        run = recipes.build(recipe, **options.of_run())
        until = estimate.measure(run).images_in(run, 3600 * hours)
        smaller = recipe.smaller(run, until) if isinstance(recipe, recipes.Recipe) else None
        if smaller is None:
            break
        recipe = smaller
    chosen = "".join(f", {name} {getattr(recipe, name)}" for name in fitted(recipe))
    print(f"{hours:g} hours: {until:,} training images{chosen}", flush=True)
    return dataclasses.replace(recipe, until=until)


def fitted(recipe: Any) -> tuple[str, ...]:
    """Settings that --hours may change besides the length."""
    return recipe.fitted if isinstance(recipe, recipes.Recipe) else ()


def announce(recipe: Any, run: Run, options: Options) -> None:
    """Print what a run will do and take; its time is measured, unless it resumes and its log has it. All ranks call it."""
    from fewstep.runtime.distributed import from_first, rank
    from fewstep.train import estimate

    resumed = from_first(None if options.fresh else estimate.so_far(options.out, run.until))
    if rank() == 0:
        expected = recipe.expected(run) if isinstance(recipe, recipes.Recipe) else ""
        known = [summary(run.data.data), *estimate.about(run), expected and f"quality: {expected}", resumed]
        print("\n".join(filter(None, known)), flush=True)
    if resumed or (estimate.steps_of(run) < estimate.SHORT and not options.dry_run):
        return
    try:
        found = estimate.measure(run).lines(run)
    except Exception as error:  # of a method of one's own that cannot be copied, or trains no single image
        found = [f"time: not estimated; a step on a copy of the method failed: {error}"]
    if rank() == 0:
        print("\n".join(found), flush=True)


def summary(data: Any) -> str:
    """The training data in one line: how many images, their shape and classes."""
    from fewstep.data.classes import class_list

    classes = class_list(data.num_classes, getattr(data, "class_names", None)) if data.num_classes else "no classes"
    return f"{data.name}: {len(data):,} images of shape {tuple(data.shape)}, {classes}"


def compare(
    teacher: Positional[Path],
    methods: Positional[tuple[str, ...]],
    *,
    data: str,
    out: Path,
    until: int | None = None,
    evaluations: int = 6,
    metrics: str = "fd_pixels",
    seed: int = 0,
    fresh: bool = False,
    device: Device = None,
) -> None:
    """Distil one teacher with several recipes at equal budget, and report quality over NFE, training images and time.

    Args:
        teacher: model or run folder.
        methods: recipes such as digits:sid digits:gdd, or mine.py:recipe. Recipes that start from a student use SiD's.
        data: images for training and reference: zip, folder, or digits (built in).
        out: folder for all runs, results.json and report.html; repeat the command to continue.
        until: training images for every method. If unset: those of each recipe.
        evaluations: number of evaluations during each run.
        metrics: such as fid,pr; see fewstep eval.
        seed: seed of weights, data order and noise.
        fresh: delete earlier runs and start over.
    """
    from fewstep.compare import compare as run_compare
    from fewstep.compare import show
    from fewstep.runtime.distributed import process_group, rank, use

    use(device)
    if not methods:
        raise ValueError("name the recipes to compare, such as digits:sid digits:sida; fewstep recipes lists them")
    with process_group():
        rows = run_compare(
            teacher,
            methods,
            out,
            data=data,
            until=until,
            evaluations=evaluations,
            metrics=tuple(metrics.split(",")),
            seed=seed,
            fresh=fresh,
            command=command_line(["compare", str(teacher), *methods, "--data", data, "--out", str(out)]),
        )
        if rank() == 0:
            show(rows, out)
            print(f"Look at {out / 'report.html'}")


def list_recipes(name: Positional[str | None] = None, *, method: str | None = None) -> None:
    """List the recipes, or show the settings of one.

    Args:
        name: recipe to show, such as digits:teacher.
        method: list only the recipes of one method, such as sida or teacher.
    """
    if name is not None:
        parsed(name, ["--help"], f"fewstep train|distill {name}")
    rows = recipes.TABLE
    if method is not None:
        methods = dict.fromkeys(n.partition(":")[2] for n in rows)
        if method not in methods:
            raise ValueError(f"there is no method {method!r}; the methods are {', '.join(methods)}")
        rows = {n: row for n, row in rows.items() if n.endswith(f":{method}")}
    print_rows(rows)


def print_rows(rows: dict[str, recipes.Row]) -> None:
    width = max(map(len, rows))
    for n, row in rows.items():
        print(f"{n:{width}}  {row.summary}")

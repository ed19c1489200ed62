"""Makes what is handed in to the challenge: a folder from which the organisers build the server, and train it again.

    Dockerfile, Dockerfile.train, requirements.txt    serving and training; exact versions
    serve.yaml                                        settings of submission/serve.py
    lit_gpt/ scripts/ finetune/ submission/           the code; README.md and what it links to
    model/, finetuned/                                the weights, or where they are fetched; what was trained
    train/                                            settings, run.json, metrics.csv, rows of your own
    SUBMISSION.md, DATA.md, ATTRIBUTION.md            what was checked; the data; licences

All files are gathered as a table of names first. The rules look at that table, and only then anything is written.
"""

import contextlib
import importlib.metadata
import io
import json
import re
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from lit_gpt.challenge.cards import CARDS, Serving, serving
from lit_gpt.challenge.rules import RULES, Entry, Finding, findings
from lit_gpt.challenge.training import Training, training
from lit_gpt.challenge.weights import Files, Model, Part, Tuned, copied, referenced, tuned
from lit_gpt.files import locked, results_folder, size_text, write_text
from lit_gpt.merge import Merge, merge_lora
from lit_gpt.methods import Trained
from lit_gpt.serve import Serve
from lit_gpt.settings import UserError, did_you_mean, one_line, parse

ROOT = Path(__file__).parents[2]
CODE = ("lit_gpt", "scripts", "finetune", "submission", "tutorials")
ABOUT = ("pyproject.toml", "README.md", "CONTRIBUTING.md", "LICENSE")
MARKS = ("SUBMISSION.md", "Dockerfile", "serve.yaml")
"""What an earlier bundle is known by."""
NAMES = {*CODE, *ABOUT, *MARKS, "Dockerfile.train", "requirements.txt", "DATA.md", "ATTRIBUTION.md"} | {
    *("model", "base", "finetuned", "train", "verify-failures")
}
"""All that a bundle, or its trial, leaves there; anything else is somebody's work."""
MOST_ROWS = 30
"""Requests that the evaluation has under way at once."""


@dataclass
class Submission(Trained):
    """What to hand in, and where to write it."""

    track: Literal["4090", "a100"] = field(kw_only=True)
    """The card: RTX 4090 with 24 GB, or A100 with 40 GB."""
    out_dir: Path = field(kw_only=True)
    """Folder for the bundle: a new one, or an earlier bundle, which is replaced."""
    weights: Literal["copy", "reference"] = "copy"
    """Copy the base's weights, or let the container's image fetch them from the hub by commit and checksum."""
    merge: bool = False
    """Fold what LoRA trained into the base's weights; these can be fetched nowhere, so they are copied."""
    serve_config: Path | None = None
    """Settings of submission/serve.py as a YAML file, such as one that you tried; unset: its defaults, but for answers
    that end at a blank line (cut). Without batch_size there are as many rows as fit, at most 30."""
    data_url: str | None = None
    """Where data of your own are public."""
    allow: list[str] | str = field(default_factory=list)
    """Rules to hand in against, by their names, such as "[data,hours]"; SUBMISSION.md says so."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.allow = [self.allow] if isinstance(self.allow, str) else self.allow
        if unknown := [name for name in self.allow if name not in RULES]:
            hint = did_you_mean(unknown[0], RULES)
            raise UserError(f"--allow: no rule '{unknown[0]}'; {hint}they are {', '.join(RULES)}")
        if self.data_url and not re.match(r"https?://\w", self.data_url):
            raise UserError(f"--data_url: {self.data_url} is no address; write it as https://...")
        if self.merge and self.weights == "reference":
            raise UserError("--merge true: merged weights can be fetched nowhere; take --weights copy")
        if self.merge and not self.finetuned:
            raise UserError("--merge true: there is nothing to merge; give --lora_path")


def prepare_submission(settings: Submission) -> None:
    """Checks the challenge's rules, and writes a folder that builds into its container.

    Raises:
        UserError: a rule is broken and not allowed to be, a file is missing, or the folder cannot be written.
    """
    from lit_gpt.checkpoint import prove_weights

    s, card = settings, CARDS[settings.track]
    out = _checked_out_dir(s)
    model = Model(s.checkpoint_dir)
    prove_weights(model.folder)
    what = tuned(s.finetuned, model)
    served = (referenced if s.weights == "reference" else copied)(model.folder, "model")
    again = None
    if what.run and what.folder:
        own = None if s.merge or model.trained else served
        again = training(what.run, what.folder, model, own, card)
        for found in again.data:
            if s.data_url and not found.place:
                found.urls = [s.data_url]
    config, needed = _serve_settings(s, model, what, served.folder)
    files = {**_code(out), **({} if s.merge else served.files | what.files)}
    if again:
        files |= {**again.base.files, **again.files}
    if inside := [path for path in files.values() if isinstance(path, Path) and path.resolve().is_relative_to(out)]:
        raise UserError(
            f"--out_dir {s.out_dir} would be replaced, but the bundle is made from {inside[0]}; choose another"
        )
    files["serve.yaml"] = "# Settings of submission/serve.py; flags win.\n" + yaml.safe_dump(config, sort_keys=False)
    parquet = any(file["file"].endswith(".parquet") for found in (again.data if again else []) for file in found.files)
    files["requirements.txt"] = _requirements(["pyarrow"] if parquet else [])
    files["Dockerfile"] = _dockerfile(served, [] if s.merge or not what.files else ["finetuned"])
    if again:
        files["Dockerfile.train"] = _dockerfile_train(again)
    files["ATTRIBUTION.md"] = _attribution(model, again)
    files["DATA.md"] = _data(again)
    entry = Entry(
        card=card,
        base=model.repo_id,
        config=model.config,
        data=again.data if again else [],
        files=files,
        serving=needed,
        rows=config["batch_size"],
        training=again.outlook if again else None,
        run=what.run,
        tuned=bool(s.finetuned or model.trained),
        to_fetch=served.fetched,
        to_load=model.size + (0 if s.merge else what.size),
        gated=model.gated,
    )
    found = findings(entry)
    _refuse(found, s.allow)
    files["SUBMISSION.md"] = _report(entry, found)
    _write(files, s, out)
    broken = [name for name in found if not all(finding.kept for finding in found[name])]
    allowed = f"; allowed: {', '.join(broken)}" if broken else ""
    print(f"rules     {len(RULES) - len(broken)} of {len(RULES)} kept{allowed}")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"wrote     {s.out_dir}: {size_text(size)}")
    print(f"next      python submission/verify.py --bundle_dir {shlex.quote(str(s.out_dir))}")


def _checked_out_dir(s: Submission) -> Path:
    """Where the bundle goes, without links and dots.

    Raises:
        UserError: something is there that must not be lost.
    """
    out = s.out_dir.resolve()
    found = [path.name for path in out.iterdir()] if out.is_dir() else []
    if (out.exists() and not out.is_dir()) or (found and not all((out / name).is_file() for name in MARKS)):
        raise UserError(f"--out_dir {s.out_dir} is something else than an earlier bundle; choose another folder")
    if more := sorted({*found} - NAMES):
        raise UserError(
            f"--out_dir {s.out_dir} would be replaced, but holds {more[0]}; move that away, or choose another"
        )
    for path in (s.checkpoint_dir, s.finetuned, s.serve_config, ROOT):
        if path and path.resolve().is_relative_to(out):
            raise UserError(
                f"--out_dir {s.out_dir} would be replaced, but the bundle is made from {path}; choose another"
            )
    return out


def _refuse(found: dict[str, list[Finding]], allowed: list[str]) -> None:
    """Raises UserError if a rule is broken and not allowed to be, after a line for each of them."""
    broken = {name: [f.text for f in said if not f.kept] for name, said in found.items()}
    wrong = {name: texts for name, texts in broken.items() if texts and name not in allowed}
    for name, texts in wrong.items():
        for text in texts:
            print(one_line(f"{name}: {text} [{RULES[name].source}]"), file=sys.stderr)
    if wrong:
        names = ",".join([*allowed, *wrong])
        raise UserError(
            f"broken: {', '.join(wrong)}; nothing was written. To hand in all the same: --allow "
            + (f'"[{names}]"' if "," in names else names)
        )


def _serve_settings(s: Submission, model: Model, what: Tuned, folder: str) -> tuple[dict[str, Any], Serving]:
    """Settings of submission/serve.py in the bundle, and the memory that they take.

    Raises:
        UserError: --serve_config holds what the server does not take; names the line.
    """
    argv = ["--config", str(s.serve_config)] if s.serve_config else ["--cut", "blank_line"]
    (own,) = parse([*argv, "--checkpoint_dir", folder], [Serve], "", "")
    _check_style(own.prompt_style, s, model)
    length = min(own.max_seq_length, model.config.block_size)
    tuned_in, tuned_size = (None, 0) if s.merge else (what.quantize, what.size)
    kind = own.quantize or tuned_in
    needed = serving(model.config, own.precision, None if kind == "none" else kind, length, tuned_size)
    own.batch_size = own.batch_size or min(MOST_ROWS, needed.rows(CARDS[s.track].usable_gb))
    elsewhere = {field.name for field in fields(Trained)} | {"host", "port"}
    config = {name: value for name, value in asdict(own).items() if name not in elsewhere}
    places = {"checkpoint_dir": folder} | ({"lora_path": what.path} if what.path and not s.merge else {})
    return {**places, **config}, needed


def _check_style(name: str | None, s: Submission, model: Model) -> None:
    """Raises UserError if the server would not know a prompt style, or not have its file."""
    from lit_gpt.checkpoint import style_of

    if name is None:
        return
    if Path(name).is_file():
        raise UserError(
            f"--serve_config: prompt_style {name} is a file, which the container lacks; write its text there"
        )
    if style_of(model.folder, s.finetuned, None if name == "trained" else name) is None:
        raise UserError(
            "--serve_config: prompt_style trained: nothing is known of this model's; name one, such as alpaca"
        )


def _code(out: Path) -> Files:
    """The toolkit's own files that a container or its reader needs, without a bundle among them."""
    if not (ROOT / "scripts").is_dir():
        raise UserError(f"there are no launchers beside {ROOT}; run this command from a clone of the repository")
    paths = [path for folder in CODE for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]
    paths = [path for path in paths if not path.resolve().is_relative_to(out)]
    kept = [path for path in paths if path.suffix != ".pyc" and not path.name.startswith(".")]
    return {str(path.relative_to(ROOT)): path for path in [*kept, *(ROOT / name for name in ABOUT)]}


def _requirements(more: list[str]) -> str:
    """Exact versions of the packages that the container needs, `more` among them, and of those that these need: as
    requirements.txt has them, the others as they are here."""
    from packaging.requirements import Requirement

    text = (ROOT / "requirements.txt").read_text(encoding="utf-8").partition("# tests")[0]
    lines = [line for line in text.splitlines() if re.match(r"\w", line) and not line.startswith("lm-eval")]
    asked = [Requirement(line) for line in lines]
    pinned = {_name(known.name): known for known in asked if not known.marker or known.marker.evaluate()}
    waiting, found = [*pinned.values(), *map(Requirement, more)], {}
    while waiting:
        parent = waiting.pop()
        name, extras = _name(parent.name), ("", *parent.extras)
        if (name, extras) in found:
            continue
        try:
            here = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # of an extra, or for another system
            found[name, extras] = f"{name}{pinned[name].specifier}" if name in pinned else ""
            continue
        version = pinned[name].specifier if name in pinned else f"=={here.version.partition('+')[0]}"
        found[name, extras] = f"{name}{version}"
        children = [Requirement(line) for line in here.requires or []]
        waiting += [c for c in children if not c.marker or any(c.marker.evaluate({"extra": e}) for e in extras)]
    return "".join(f"{line}\n" for line in sorted({*found.values()} - {""}))


def _name(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _dockerfile(served: Part, tuned: list[str]) -> str:
    """The serving container."""
    return "\n".join(
        [
            "# The server of the submission, at port 80, with no volume, environment variable or token:",
            "#   docker build -t submission . && docker run --gpus all -p 8080:80 submission",
            *_beginning(),
            *(f"COPY {name} {name}" for name in ("lit_gpt", "scripts", "submission")),
            *served.steps,
            *(f"COPY {name} {name}" for name in tuned),
            "COPY serve.yaml .",
            "EXPOSE 80",
            _cmd(["python", "submission/serve.py", "--config", "serve.yaml", "--host", "0.0.0.0", "--port", "80"]),
            "",
        ]
    )


def _dockerfile_train(again: Training) -> str:
    """The container that repeats the finetuning."""
    return "\n".join(
        [
            "# Repeats the finetuning; what is trained goes to /submission/out, here the folder retrained/:",
            "#   docker build -f Dockerfile.train -t train .",
            '#   docker run --gpus all -v "$PWD/retrained:/submission/out" train',
            *_beginning(),
            *(f"COPY {name} {name}" for name in ("lit_gpt", "scripts", "finetune")),
            *again.base.steps,
            "COPY train train",
            *again.steps,
            _cmd(again.command),
            "",
        ]
    )


def _beginning() -> list[str]:
    """How both containers begin: Python as here, the packages, and the code where it is found."""
    return [
        f"FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim",
        "WORKDIR /submission",
        "ENV PYTHONPATH=/submission PYTHONUNBUFFERED=1",
        "ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        "RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1",
        "COPY requirements.txt .",
        "RUN pip install --no-cache-dir -r requirements.txt",
    ]


def _cmd(words: list[str]) -> str:
    return f"CMD {json.dumps(words)}"


def _attribution(model: Model, again: Training | None) -> str:
    """Whose work the bundle holds, and under which licences."""
    where = f"{model.repo_id} (https://huggingface.co/{model.repo_id})" if model.repo_id else "unknown"
    licence = model.row.licence if model.row else "unknown; see its page"
    lines = ["# Attribution", "", "- Code: Lit-GPT, Apache-2.0 (`LICENSE`); packages: `requirements.txt`."]
    lines.append(f"- Base model: {where}; licence: {licence}.")
    for found in again.data if again else []:
        lines.append(f"- Data: {found.name}, {found.place or 'in this bundle'}; licence: {found.licence or 'unknown'}.")
    return "\n".join([*lines, ""])


def _data(again: Training | None) -> str:
    """The data: where they are from, what was taken, and how they were prepared."""
    if not again:
        return "# Data\n\nNothing was trained, or nothing is known of it.\n"
    counts = (
        f"{again.rows['train']:,} rows were trained on, {again.rows['test']:,} more kept for validation (`test.pt`)."
    )
    lines = ["# Data", "", counts, ""]
    for found in again.data:
        lines += [f"## {found.name}", "", f"- where: {found.place or 'in this bundle only, `train/data/`'}"]
        lines += [f"- commit: {found.commit}"] if found.commit else []
        lines += [f"- licence: {found.licence or 'unknown'}", f"- rows taken: {found.rows:,}"]
        lines += [f"- file `{file['file']}`, SHA-256 {file['sha256']}" for file in found.files]
        lines.append("")
    steps = [step.removeprefix("RUN ") for step in again.steps if step.startswith("RUN python")]
    return "\n".join([*lines, "## Prepared with", "", "```sh", *steps, "```", ""])


SERVE = """
## Serve

```sh
docker build -t submission .
docker run --gpus all -p 8080:80 submission
PYTHONPATH=. python submission/verify.py --url http://localhost:8080  # needs jsonargparse[signatures] and pyyaml
```

Without Docker: `pip install -r requirements.txt`, then `PYTHONPATH=. python submission/serve.py --config serve.yaml`.
"""
TRAIN = """
## Train again

```sh
docker build -f Dockerfile.train -t train .
docker run --gpus all -v "$PWD/retrained:/submission/out" train
```

The run took {seconds:,.0f} s on {hardware}, with seed {seed} (`train/run.json`, `train/metrics.csv`).
Put the weights from `retrained/` into {where}.
"""


def _report(entry: Entry, found: dict[str, list[Finding]]) -> str:
    """SUBMISSION.md: what was checked, what was allowed all the same, and how to use the bundle."""
    lines = [f"# Submission, track {entry.card.name}", "", "| rule | | found | source |", "|---|---|---|---|"]
    for name, said in found.items():
        for finding in said:
            mark = "kept" if finding.kept else "**broken, allowed by --allow**"
            lines.append(f"| {name} | {mark} | {finding.text.replace('|', '/')} | {RULES[name].source} |")
    text = "\n".join([*lines, SERVE])
    if entry.run:
        tuned = any(place.startswith("finetuned/") for place in entry.files)
        where = "`finetuned/`" if tuned else "the base's (`scripts/merge_lora.py`)"
        seconds, seed = entry.run["result"]["seconds"], entry.run["settings"]["seed"]
        text += TRAIN.format(seconds=seconds, hardware=entry.run["hardware"], seed=seed, where=where)
    return text


def _write(files: Files, s: Submission, out: Path) -> None:
    """Writes the bundle beside its place; it takes its name when it is whole, and an earlier one goes."""
    new, old, lock = (out.with_name(f".{out.name}.{kind}") for kind in ("new", "old", "lock"))
    results_folder(out.parent)
    with locked(lock, f"another process is writing {s.out_dir}; wait for it or choose another --out_dir"):
        try:
            _write_new(files, s, new)
            if out.is_dir():
                out.rename(old)
            try:
                new.rename(out)
            except BaseException:
                if old.is_dir() and not out.exists():
                    old.rename(out)
                raise
        finally:
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _write_new(files: Files, s: Submission, new: Path) -> None:
    """Writes the bundle to the folder `new`."""
    shutil.rmtree(new, ignore_errors=True)
    need = sum(path.stat().st_size for path in files.values() if isinstance(path, Path))
    if need > shutil.disk_usage(new.parent).free:
        raise UserError(f"the bundle takes {size_text(need)}; free some space, or choose another --out_dir")
    for place, content in files.items():
        target = new / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            write_text(target, content)
        else:
            shutil.copyfile(content, target)
    if s.merge:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            merge_lora(Merge(s.checkpoint_dir, s.finetuned, new / "model"))
        print(said.getvalue().partition("next: ")[0].replace(str(new), str(s.out_dir)), end="", file=sys.stderr)

"""The page of a claim, its figure, and the table of all claims: from the committed CSV alone.

python benchmarks/claims/page.py         writes all of them again, the table of README.md too
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import pandas as pd
from claim import HERE, Settings, Verdict, module, overall, read_settings
from matplotlib.figure import Figure
from tables import fill, markdown

README = HERE / "README.md"
NOT_RUN = "not run yet"
LINKS = "../results/claims/"
COMMAND = "benchmarks/claims/run.py --size {size} {claim}"
WHERE = {"local": Path(), "full": Path("full")}  # below benchmarks/results/claims


def read_rows(claim: str, out: Path) -> pd.DataFrame:
    """Return the rows of a claim's CSV."""
    return pd.read_csv(out / f"{claim}.csv", keep_default_na=True)


def write_page(claim: str, size: str, out: Path) -> None:
    """Write a claim's figure and page beside its CSV."""
    rows, settings = read_rows(claim, out), read_settings(claim, size)
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    module(claim).draw(rows, figure)
    figure.savefig(out / f"{claim}.png", dpi=110, metadata={"Software": None})
    text = page(claim, size, rows, settings, sorted(p.name for p in out.glob(f"{claim}_*.png")))
    (out / f"{claim}.md").write_text(text, encoding="utf-8")


def page(
    claim: str, size: str, rows: pd.DataFrame, settings: Settings, pictures: list[str] | None = None
) -> str:
    """Return a claim's page."""
    script = module(claim)
    verdicts: list[Verdict] = script.verdicts(rows, settings)
    lines = [
        f"# {script.TITLE}",
        "",
        f"**The paper:** {script.PAPER}",
        "",
        f"**At this scale: {overall(verdicts)}.**",
        "",
        "| statement | measured | does it agree? |",
        "| --- | --- | --- |",
        *(f"| {v.statement} | {v.found} | {v.answer} |" for v in verdicts),
        "",
        markdown(script.summary(rows)),
        "",
        f"![{script.TITLE}]({claim}.png)",
        *(f"\n![{script.CAPTIONS[name]}]({name})" for name in pictures or ()),
        "",
        "## What is run",
        "",
        script.__doc__.strip(),
        "",
        "## The rule, stated before running",
        "",
        script.RULE,
        "",
        "No setting was chosen on test data.",
        "",
        "## Settings",
        "",
        f"Size `{size}` of `benchmarks/claims/{claim}.toml`; the pieces took {rows.seconds.sum() / 60:.0f} "
        f"minutes in all, one after the other, of one that was stopped since it last went on; "
        f"{' to '.join(_ends(rows.date))}, on {' and '.join(rows.machine.unique())}.",
        "",
        "```toml",
        *_as_toml(settings),
        "```",
        "",
        "## Run it again",
        "",
        f"`python {COMMAND.format(size=size, claim=claim)}`; every figure is in `{claim}.csv`.",
    ]
    return "\n".join(lines) + "\n"


def _ends(dates: pd.Series) -> list[str]:
    return sorted({dates.min(), dates.max()})


def _as_toml(settings: Settings) -> list[str]:
    plain = {key: value for key, value in settings.items() if not isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for name, table in settings.items():
        if isinstance(table, dict):
            lines += [
                "",
                f"[{name}]",
                *(f"{key} = {json.dumps(value)}" for key, value in table.items()),
            ]
    return lines


def index(results: Path, claims: tuple[str, ...], links: str = "") -> str:
    """Return the table of claims: what the paper says, what was measured, whether it agrees, the command.

    Of a claim that was run on the paper's data sets these results count, else those of size local.
    """
    lines = ["| claim | the paper | ours | agrees? | command |", "| --- | --- | --- | --- | --- |"]
    for claim in claims:
        script = module(claim)
        sizes = [s for s in ("full", "local") if (results / WHERE[s] / f"{claim}.csv").is_file()]
        name, ours, answer = script.TITLE, NOT_RUN, NOT_RUN
        size = sizes[0] if sizes else "local"
        if sizes:
            place = WHERE[size]
            rows, settings = read_rows(claim, results / place), read_settings(claim, size)
            verdicts = script.verdicts(rows, settings)
            ours, answer = script.in_short(rows), overall(verdicts)
            name = f"[{name}]({links}{(place / claim).as_posix()}.md)"
        command = f"`{COMMAND.format(size=size, claim=claim)}`"
        lines.append(f"| {name} | {script.PAPER_IN_SHORT} | {ours} | {answer} | {command} |")
    return "\n".join(lines)


def write_index(results: Path, claims: tuple[str, ...], readme: Path = README) -> None:
    """Write the table into README.md beside this script, between its marks."""
    fill(readme, {"claims": index(results, claims, LINKS)})


if __name__ == "__main__":
    from run import CLAIMS, PLACES, RESULTS

    for size in WHERE:
        for claim in CLAIMS:
            if (PLACES[size] / f"{claim}.csv").is_file():
                write_page(claim, size, PLACES[size])
    write_index(RESULTS, CLAIMS)

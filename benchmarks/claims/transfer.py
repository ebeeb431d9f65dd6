"""Transfer among hierarchies: few shots of new classes, from a VDVAE, a supervised network, and both.

Classes are divided into groups. Each group is new once (episodes are drawn of it), the next one is chosen
on, and the others give the base mean that `simpleshot-cl2n` subtracts; where a class split is given, the
first division is that split. Nothing is trained on any of these classes here.

The VDVAE's best layers and the network's best layers are chosen by episodes of the chosen-on classes alone,
each layer by itself and all up to it. Then the two are put side by side (`vr.side_by_side`), each divided by
its root mean square distance from the base classes' mean, with a weight for the VDVAE's part that is chosen
on the same classes. The same is done at each resolution of `pairs`: the VDVAE's best layer of it and the
network's stage of about the same grid. All of it is scored in the same episodes of the new classes.
Beside it stands the same VDVAE with its initial weights, at the same layers, side by side with the network.
"""

from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from claim import Context, Piece, Row, Settings, Verdict, below, images, interval, shown
from matplotlib.figure import Figure

import vdvae_repr as vr

TITLE = "Does a VDVAE's hierarchy add anything to a supervised one?"
PAPER = (
    "nothing of this: it is a question of its readers. It says that the hierarchy is a representation "
    "that holds an image's structure; whether that helps a network that was trained with labels to tell "
    "new classes is not asked."
)
PAPER_IN_SHORT = (
    "nothing; a reader's question: what does its hierarchy add to a supervised network's?"
)
RULE = (
    "Differences are of accuracy on new classes: both side by side less the network alone, the same "
    "episodes, layers and weight chosen on other classes. The units are the new classes of all divisions; "
    "the interval is Student's 95 % over them. *Adds* agrees where the interval is above 0, disagrees "
    "where it is below, else it is not told; at each number of shots, beside the network's best layers, "
    "and beside its stages of the VDVAE's resolutions (the mean over `pairs`). *What adds was learned* "
    "agrees where both together are above the network together with the VDVAE's initial weights. The "
    "verdicts are of the first of `networks`; another, with its initial weights, stands beside it. Each "
    "interval is by itself: were all differences 0, one of six would be told in about one of four runs."
)
HEAD = "simpleshot-cl2n"
BEST = "best"
KINDS = ("vdvae", "network", "both", "both, random VDVAE")
UNIT = ["division", "class"]


def pieces(settings: Settings) -> list[Piece]:
    """Return a piece a network."""
    return [{"network": name} for name in settings["networks"]]


@dataclass(frozen=True, kw_only=True)
class ByClass(vr.FewShot):
    """`few_shot` that keeps the accuracy of each new class, by the layers of a row."""

    name = "few_shot_by_class"
    version = None

    kept: dict[str, dict[str, float]] = field(default_factory=dict)

    def bind(self, store: Any, seed: int = 0) -> vr.Problem:
        """Return episodes whose scores are looked at as they are made."""
        problem = super().bind(store, seed)
        score = problem.score

        def looked_at(head: Any, features: Any, *rest: Any) -> Any:
            scored = score(head, features, *rest)
            told: dict[str, list[float]] = defaultdict(list)
            for episode, right in zip(problem.episodes, scored.outcome, strict=True):
                for label, of_class in zip(episode.classes, right, strict=True):
                    told[store.label_names[label]].append(of_class.mean())
            self.kept[features.layer] = {name: float(np.mean(all_)) for name, all_ in told.items()}
            return scored

        problem.score = looked_at
        return problem


@dataclass(frozen=True)
class Choice:
    """Layers that were chosen: what the row is called, their names, and their score on other classes."""

    row: str
    names: tuple[str, ...]
    training_score: float
    by_class: dict[str, float]


def measure(piece: Piece, context: Context) -> list[Row]:
    """Extract with the three encoders, and score each division of the classes."""
    settings = context.settings
    source = images(context)
    source = source.select(range(0, len(source), settings["every"]))
    network = settings["networks"][piece["network"]].format(data=context.data)
    own = settings["network"]
    layers, pool = settings["vdvae_layers"], settings["vdvae_pool"]
    feature = settings["feature"]
    stores = {
        "vdvae": extracted("vdvae", settings["model"], source, context, layers, pool, feature),
        "random": extracted("random", settings["random"], source, context, layers, pool, feature),
        "network": extracted(
            "network", network, source, context, own["layers"], own["pool"], "activation"
        ),
    }
    try:
        return [
            row | {"network_sha256": stores["network"].info.weights_sha256}
            for number, sides in enumerate(divisions(stores["vdvae"].label_names, context))
            for shots in settings["shots"]
            for row in divided(number, sides, shots, stores, context)
        ]
    finally:
        for store in stores.values():
            store.close()


def extracted(
    name: str, model: str, source: vr.Source, context: Context, layers: Any, pool: str, feature: str
) -> vr.LatentStore:
    """Extract a store into the piece's folder; one that is there goes on or is taken."""
    encoder = vr.load(model, device=context.device, download=True)
    path = context.folder / f"{name}.h5"
    return vr.extract(
        encoder,
        source,
        path,
        layers=layers,
        features=(feature,),
        pool=pool,
        report=lambda line: None,
    )


def divisions(names: tuple[str, ...], context: Context) -> list[dict[str, list[str]]]:
    """Return the sides of each division: of `groups` of classes one is new and the next chosen on."""
    settings, count = context.settings, context.settings["groups"]
    if not (split := settings.get("class_split")):
        order = sorted(names)
    else:
        table = pd.read_csv(split.format(data=context.data))
        place = {"novel": 0, "val": 1, "base": 2}
        table = table.sort_values("split", key=lambda column: column.map(place), kind="stable")
        order = table["class"].tolist()
    groups = [list(group) for group in np.array_split(order, count)]
    return [
        {
            "novel": groups[new],
            "val": groups[(new + 1) % count],
            "base": [k for i in range(2, count) for k in groups[(new + i) % count]],
        }
        for new in range(count)
    ]


def divided(
    number: int, sides: dict[str, list[str]], shots: int, stores: dict[str, Any], context: Context
) -> list[Row]:
    """Choose and score in one division of the classes, at a number of shots."""
    settings = context.settings
    path = context.folder / f"classes-{number}.csv"
    listed = [{"class": name, "split": side} for side, own in sides.items() for name in own]
    pd.DataFrame(listed).to_csv(path, index=False)
    vdvae, network = stores["vdvae"], stores["network"]
    base = np.isin(np.array(vdvae.label_names)[vdvae.labels], sides["base"])
    alone = {name: scored(stores[name], shots, path, settings) for name in ("vdvae", "network")}
    rows = []
    for place in (BEST, *settings["pairs"]):
        if place == BEST:
            ours, theirs = best(alone["vdvae"]), best(alone["network"])
        else:
            stage = settings["pairs"][place]
            ours = best([c for c in alone["vdvae"] if c.row.startswith(f"{place}.")])
            theirs = best([c for c in alone["network"] if c.row == stage])
        found = {
            "vdvae": (ours, 1.0),
            "network": (theirs, 1.0),
            "both": joined((vdvae, network), (ours, theirs), base, shots, path, settings),
        }
        if place == BEST:
            untrained = stores["random"], network
            found["both, random VDVAE"] = joined(
                untrained, (ours, theirs), base, shots, path, settings
            )
        rows += [
            {"division": number, "shots": shots, "place": place, "of": kind, "weight": weight}
            | {"layers": choice.row, "score_chosen_by": choice.training_score}
            | {"class": name, "accuracy": value}
            for kind, (choice, weight) in found.items()
            for name, value in choice.by_class.items()
        ]
    return rows


def scored(
    store: Any, shots: int, split: Path, settings: Settings, layers: str | None = None
) -> list[Choice]:
    """Score layers of a store: each singly and all up to it; or `layers`, together."""
    episodes = {name: settings[name] for name in ("ways", "queries", "episodes")}
    task = ByClass(shots=shots, class_split=split, **episodes)
    report = vr.probe(
        store,
        task,
        layers=layers or "all",
        selections="joint" if layers else ("single", "cumulative"),
        heads=HEAD,
        controls=(),
        cache=None,
        seed=settings["seed"],
        progress=False,
    )
    return [
        Choice(
            row.layer,
            tuple(spec.name for spec in store.distinct(row.layer, store.default_feature)),
            row.training_score,
            task.kept[row.layer],
        )
        for row in report.rows
    ]


def best(choices: list[Choice]) -> Choice:
    """Return what the chosen-on classes say is best, the first of equals."""
    return max(choices, key=lambda choice: choice.training_score)


def joined(
    stores: tuple[Any, Any],
    choices: tuple[Choice, Choice],
    base: np.ndarray,
    shots: int,
    split: Path,
    settings: Settings,
) -> tuple[Choice, float]:
    """Score two stores side by side under each weight of the first; returns the chosen one and its weight."""
    names = [choice.names for choice in choices]
    first, second = (1 / spread(store, own, base) for store, own in zip(stores, names, strict=True))
    tried = []
    for weight in settings["weights"]:
        both = vr.side_by_side(*stores, weights=(weight * first, second))
        (choice,) = scored(both, shots, split, settings, ",".join(sum(names, ())))
        called = " beside ".join(own.row for own in choices)
        tried.append((replace(choice, row=called), weight))
    return max(tried, key=lambda found: found[0].training_score)


def spread(store: Any, names: tuple[str, ...], base: np.ndarray) -> float:
    """Return the root mean square distance of the base classes' images from their mean."""
    X = store.matrix(list(names))[0][base].astype(float)
    return float(np.sqrt(((X - X.mean(axis=0)) ** 2).sum(axis=1).mean()))


def gains(rows: pd.DataFrame, less: str, shots: int, places: list[str]) -> np.ndarray:
    """Return what both have more than `less`, of each new class; of several places the mean."""
    own = rows[(rows.shots == shots) & rows.place.isin(places)]
    table = own.pivot_table(index=UNIT, columns=["of"], values="accuracy", observed=True)
    return (table["both"] - table[less]).to_numpy(float)


def verdicts(rows: pd.DataFrame, settings: Settings) -> list[Verdict]:
    """Say whether both are more than the network, and than the network beside initial weights."""
    rows = rows[rows.network == next(iter(settings["networks"]))]
    asked = (
        ("VDVAE layers add to a supervised network's best layers", "network", [BEST]),
        ("VDVAE layers add to its stages of their resolution", "network", list(settings["pairs"])),
        ("what its best layers gain was learned", "both, random VDVAE", [BEST]),
    )
    found = []
    for statement, less, places in asked:
        for shots in sorted(rows.shots.unique()):
            gain = gains(rows, less, shots, places)
            mean, low, high = interval(gain)
            found.append(
                Verdict(
                    f"{statement}, {_shots(shots)}",
                    f"{shown((mean, low, high))} of accuracy, {len(gain)} new classes",
                    below((-mean, -high, -low)),
                )
            )
    return found


def in_short(rows: pd.DataFrame) -> str:
    """Say what was found in a few words."""
    texts = []
    for network, own in rows.groupby("network", sort=False):
        means = own[(own.place == BEST)].groupby(["shots", "of"]).accuracy.mean()
        texts += [
            f"network ({network}) {means[shots, 'network']:.3f}, both {means[shots, 'both']:.3f} "
            f"at {_shots(shots)}"
            for shots in sorted(own.shots.unique())
        ]
    return "; ".join(texts)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a network, place and number of shots: accuracies over new classes, and the gain."""
    table = []
    for (network, place, shots), own in rows.groupby(["network", "place", "shots"], sort=False):
        means = own.groupby("of").accuracy.mean()
        cells = {kind: f"{means[kind]:.3f}" if kind in means else "" for kind in KINDS}
        gain = shown(interval(gains(own, "network", shots, [place])))
        table.append(
            {"weights of the network": network, "layers": place, "shots": shots}
            | {"VDVAE" if kind == "vdvae" else kind: cell for kind, cell in cells.items()}
            | {"both less network": gain}
        )
    return pd.DataFrame(table)


def draw(rows: pd.DataFrame, figure: Figure) -> None:
    """Show accuracies of the best layers, and what both have more than the network at each place."""
    left, right = figure.subplots(1, 2)
    groups = list(rows.groupby(["network", "shots"], sort=False))
    names = [f"{network}\n{_shots(shots)}" for (network, shots), _ in groups]
    for shift, kind in zip((-0.24, -0.08, 0.08, 0.24), KINDS, strict=True):
        found = []
        for _, own in groups:
            kept = own[(own.place == BEST) & (own.of == kind)]
            found.append(interval(kept.accuracy))
        _bars(left, np.arange(len(groups)) + shift, found, kind)
    left.set_ylabel("accuracy, new classes")
    left.set_title("best layers", fontsize=9)
    places = list(dict.fromkeys(rows.place))
    for shift, place in zip(np.linspace(-0.24, 0.24, len(places)), places, strict=True):
        found = [interval(gains(own, "network", shots, [place])) for (_, shots), own in groups]
        _bars(right, np.arange(len(groups)) + shift, found, place)
    right.axhline(0, color="0.5", linewidth=0.8)
    right.set_ylabel("both less network")
    right.set_title("where the layers are of", fontsize=9)
    for axes in (left, right):
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.legend(fontsize=7, frameon=False)


def _bars(
    axes: Any, places: np.ndarray, found: list[tuple[float, float, float]], name: str
) -> None:
    means, lows, highs = np.array(found).T
    ends = np.nan_to_num([means - lows, highs - means], posinf=0)
    axes.errorbar(places, means, ends, fmt="o", markersize=4, linewidth=1.2, label=name)


def _shots(shots: int) -> str:
    return f"{shots} shot" if shots == 1 else f"{shots} shots"

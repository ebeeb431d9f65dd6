"""Transfer among hierarchies: few shots of new classes, from a VDVAE, a supervised network, and both.

Classes are divided into groups. Each group is new once (episodes are drawn of it), the next one is chosen
on, and the others give the base mean that `simpleshot-cl2n` subtracts; where a class split is given, the
first division is that split. Nothing is trained on any of these classes here.

The VDVAE's best layers and the network's best layers are chosen by episodes of the chosen-on classes alone:
of each layer by itself, a VDVAE's layers up to each resolution together, and all of the network's. Then the
two are put side by side (`vr.side_by_side`), each divided by its root mean square distance from the base
classes' mean, with a weight for the VDVAE's part that is chosen on the same classes. The same is done at each
resolution of `pairs`: the VDVAE's best layer of it and the network's stage of about the same grid. All of it
is scored in the same episodes of the new classes. Beside it stands the same VDVAE with its initial weights,
at the same layers, side by side with the network.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from claim import UNTOLD, Context, Piece, Row, Settings, Verdict, below, images, interval, shown
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
    "interval is by itself: were all differences 0, one of six would be told in about one of four runs. "
    "**Changed after size local had been seen:** *What adds was learned* is not told where nothing adds; "
    "there it would have agreed at 5 shots, though both together are not above the network alone."
)
HEAD = "simpleshot-cl2n"
BEST = "best"
KINDS = ("vdvae", "network", "both", "both, random VDVAE")
UNIT = ["division", "class"]


def pieces(settings: Settings) -> list[Piece]:
    """Return one piece: everything is scored in the same episodes."""
    return [{"seed": settings["seed"]}]


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
    """Extract with all encoders, and score each division of the classes."""
    settings = context.settings
    source = images(context)
    source = source.select(range(0, len(source), settings["every"]))
    own = settings["vdvae_layers"], settings["vdvae_pool"], settings["feature"]
    theirs = settings["network"]["layers"], settings["network"]["pool"], "activation"
    vdvae, untrained = (
        extracted(name, settings[name], source, context, *own) for name in ("model", "random")
    )
    networks = {
        name: extracted(
            f"network-{name}", model.format(data=context.data), source, context, *theirs
        )
        for name, model in settings["networks"].items()
    }
    rows: list[Row] = []
    for number, sides in enumerate(divisions(vdvae.label_names, context)):
        path = context.folder / f"classes-{number}.csv"
        listed = [{"class": name, "split": side} for side, own in sides.items() for name in own]
        pd.DataFrame(listed).to_csv(path, index=False)
        base = np.isin(np.array(vdvae.label_names)[vdvae.labels], sides["base"])
        for shots in settings["shots"]:
            division = Division(number, path, base, shots, settings)
            ours = division.alone(vdvae, upto=True)
            for name, network in networks.items():
                told = {"network": name, "network_sha256": network.info.weights_sha256}
                rows += [told | row for row in division.rows(vdvae, untrained, network, ours)]
    for store in (vdvae, untrained, *networks.values()):
        store.close()
    return rows


@dataclass(frozen=True)
class Pair:
    """Layers of a VDVAE to be put beside layers of the network, at a weight."""

    place: str
    kind: str
    store: Any
    ours: Choice
    theirs: Choice
    weight: float


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


@dataclass(frozen=True)
class Division:
    """Which classes are new, at a number of shots."""

    number: int
    split: Path
    base: np.ndarray
    """Which images are of base classes, (N,)."""
    shots: int
    settings: Settings

    def scored(self, store: Any, selectors: list[str]) -> list[Choice]:
        """Score layers of a store, those of each selector together."""
        episodes = {name: self.settings[name] for name in ("ways", "queries", "episodes")}
        task = ByClass(shots=self.shots, class_split=self.split, **episodes)
        report = vr.probe(
            store,
            task,
            layers=selectors,
            selections="joint",
            heads=HEAD,
            controls=(),
            cache=None,
            seed=self.settings["seed"],
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

    def alone(self, store: Any, upto: bool) -> list[Choice]:
        """Score each layer of a store, and all of them; `upto`: all up to each resolution."""
        sizes = sorted({spec.resolution for spec in store.layers})[1:]
        together = [f"<={size}x{size}" for size in sizes] if upto else ["all"]
        return self.scored(store, [*(spec.name for spec in store.layers), *together])

    def rows(self, vdvae: Any, untrained: Any, network: Any, ours: list[Choice]) -> list[Row]:
        """Choose layers and weights, and return what is told of each new class."""
        theirs = self.alone(network, upto=False)
        chosen = {BEST: (best(ours), best(theirs))} | {
            place: (
                best([choice for choice in ours if choice.row.startswith(f"{place}.")]),
                best([choice for choice in theirs if choice.row == stage]),
            )
            for place, stage in self.settings["pairs"].items()
        }
        tried = [
            Pair(place, kind, store, *chosen[place], weight)
            for place in chosen
            for kind, store in (("both", vdvae), ("both, random VDVAE", untrained))
            if kind == "both" or place == BEST
            for weight in self.settings["weights"]
        ]
        joint = self.together(network, tried)
        rows = []
        for place, (own, other) in chosen.items():
            found = {"vdvae": (own, 1.0), "network": (other, 1.0)}
            for kind in KINDS[2:]:
                same = [
                    (choice, pair.weight)
                    for pair, choice in zip(tried, joint, strict=True)
                    if (pair.place, pair.kind) == (place, kind)
                ]
                if same:
                    found[kind] = max(same, key=lambda one: one[0].training_score)
            rows += [
                {"division": self.number, "shots": self.shots, "place": place, "of": kind}
                | {"weight": weight, "layers": f"{own.row} beside {other.row}"}
                | {"score_chosen_by": choice.training_score, "class": name, "accuracy": value}
                for kind, (choice, weight) in found.items()
                for name, value in choice.by_class.items()
            ]
        return rows

    def together(self, network: Any, pairs: list[Pair]) -> list[Choice]:
        """Score each pair's layers side by side; in one store, in which a VDVAE stands once a weight."""
        weights = [
            pair.weight
            * spread(network, pair.theirs.names, self.base)
            / spread(pair.store, pair.ours.names, self.base)
            for pair in pairs
        ]
        both = vr.side_by_side(network, *(pair.store for pair in pairs), weights=(1.0, *weights))
        selectors = []
        first = len(network.layers)
        for pair in pairs:
            specs = both.layers[first : first + len(pair.store.layers)]
            called = dict(zip((spec.name for spec in pair.store.layers), specs, strict=True))
            own = [called[name].name for name in pair.ours.names]
            selectors.append(",".join((*pair.theirs.names, *own)))
            first += len(specs)
        return self.scored(both, selectors)


def best(choices: list[Choice]) -> Choice:
    """Return what the chosen-on classes say is best, the first of equals."""
    return max(choices, key=lambda choice: choice.training_score)


def spread(store: Any, names: tuple[str, ...], base: np.ndarray) -> float:
    """Return the root mean square distance of the base classes' images from their mean."""
    X = store.matrix(list(names))[0][base].astype(float)
    return float(np.sqrt(((X - X.mean(axis=0)) ** 2).sum(axis=1).mean()))


def gains(rows: pd.DataFrame, less: str, shots: int, places: list[str]) -> np.ndarray:
    """Return what both have more than `less`, of each new class; of several places the mean."""
    own = rows[(rows.shots == shots) & rows.place.isin(places)]
    table = own.pivot_table(index=UNIT, columns=["of"], values="accuracy", observed=True)
    return (table["both"] - table[less]).to_numpy(float)


def least_weights(rows: pd.DataFrame, shots: int, places: list[str], least: float) -> str:
    """Say how often the least weight of the VDVAE's part was chosen, which may mean that none is best."""
    own = rows[(rows.shots == shots) & rows.place.isin(places) & (rows.of == "both")]
    chosen = own.groupby(["division", "place"]).weight.first()
    return f"{int((chosen == least).sum())} times of {len(chosen)}"


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
            told = f"{shown((mean, low, high), 4)} of accuracy, {len(gain)} new classes"
            whole = interval(gains(rows, "network", shots, places))
            if less == "network":
                lowest = least_weights(rows, shots, places, min(settings["weights"]))
                told += f"; the least weight was chosen {lowest}"
            else:
                told += f"; both less the network alone {shown(whole, 4)}"
            found.append(
                Verdict(
                    f"{statement}, {_shots(shots)}",
                    told,
                    below((-mean, -high, -low)) if gained(whole, less) else UNTOLD,
                )
            )
    return found


def gained(whole: tuple[float, float, float], less: str) -> bool:
    """Return whether there is anything to ask of: where nothing adds, nothing that adds was learned."""
    return less == "network" or whole[1] > 0


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
        _bars(left, np.arange(len(groups)) + shift, found, kind.replace("vdvae", "VDVAE"))
    left.set_ylabel("accuracy, new classes")
    left.set_title("the best layers of each", fontsize=9)
    places = list(dict.fromkeys(rows.place))
    for shift, place in zip(np.linspace(-0.24, 0.24, len(places)), places, strict=True):
        found = [interval(gains(own, "network", shots, [place])) for (_, shots), own in groups]
        _bars(right, np.arange(len(groups)) + shift, found, place)
    right.axhline(0, color="0.5", linewidth=0.8)
    right.set_ylabel("both less network alone")
    right.set_title("the best layers, and those of a resolution", fontsize=9)
    for axes in (left, right):
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17))


def _bars(
    axes: Any, places: np.ndarray, found: list[tuple[float, float, float]], name: str
) -> None:
    means, lows, highs = np.array(found).T
    ends = np.nan_to_num([means - lows, highs - means], posinf=0)
    axes.errorbar(places, means, ends, fmt="o", markersize=4, linewidth=1.2, label=name)


def _shots(shots: int) -> str:
    return f"{shots} shot" if shots == 1 else f"{shots} shots"

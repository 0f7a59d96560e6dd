"""Studies small enough for a test, with numbers that can be checked by hand."""

import json

ARMS = ("slow", "fast", "still")


def study(**changed):
    """What a study of three arms says of itself."""
    arms = [
        {
            "name": name,
            "label": f"label of {name}",
            "x": x,
            "line": "MoCo",
            "row": None,
            "column": None,
            "seeds": 3,
        }
        for name, x in zip(ARMS, (0.99, 0.9, 0.0), strict=True)
    ]
    ask = {"theirs": ["fast", "kNN h"], "published": "yes, by 3 points"}
    axes = {"x": "momentum", "y": "kNN"}
    return {
        "format": "querykey study", "version": 1, "name": "momentum", "title": "Momentum of the key encoder",
        "asks": "How slowly must the key encoder follow?", "source": "MoCo",
        "caveat": "It is small.",
        "measured": "kNN of h", "data": {"spec": "cifar10", "fingerprint": "abc"}, "arms": arms,
        "published": {
            "what": "ImageNet, linear, %",
            "rows": [["label of fast", "55.2"], ["slow", "59.0"], ["0", "fails"]],
        },
        "asked": [
            {"ask": "Is slow better than fast?", "ours": ["slow", "kNN h"], **ask},
            {"ask": "Is still better than fast?", "ours": ["still", "kNN h"], **ask},
        ],
        "figures": [
            {"kind": "lines", "title": "kNN against momentum", "measures": ["kNN h"], "log_x": True, **axes},
            {"kind": "bars", "title": "All arms", "measures": ["kNN h", "gap"], **axes},
        ],
    } | changed  # fmt: skip


def cell(method, seed, knn, *, gap=1.5, looks=()):
    return {
        "kind": "cell", "key": f"{method} {seed} {knn}", "task": "t", "method": method, "seed": seed,
        "values": {"kNN h": [round(1000 * knn), 1000], "gap": gap}, "settings": {"steps": 7, "seed": seed},
        "run": {"looks": list(looks)}, "versions": {"torch": "2"},
    }  # fmt: skip


def looks(*knn):
    return [
        {"kind": "look", "step": 10 * place, "loss": 2.0 / (place + 1), "knn": value, "candidates": 5.0}
        for place, value in enumerate(knn)
    ]


CELLS = (
    cell("fast", 0, 0.50), cell("fast", 1, 0.51), cell("fast", 2, 0.49),
    cell("slow", 0, 0.60, looks=looks(0.3, 0.5, 0.6)), cell("slow", 1, 0.62, looks=looks(0.3, 0.4, 0.5)),
    cell("slow", 2, 0.61),
)  # fmt: skip


def write_study(folder, *, described=None, records=CELLS):
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps(described or study()))
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def matrix():
    """What a study of pairs says, with its cells; one pair is not measured yet."""
    names = ("crop", "colour <&>", "blur")
    arms = [
        {"name": f"{a} {b}", "label": f"{a} + {b}", "x": None, "line": None, "row": a, "column": b}
        for a in names for b in names
    ]  # fmt: skip
    figure = {"kind": "heat map", "title": "Pairs", "measures": ["kNN h"], "x": "second", "y": "first"}
    described = study(
        name="pairs", title="Augmentations in pairs", arms=arms, figures=[figure], asked=[], published=None
    )
    records = [cell(arm["name"], 0, (place + 1) / 10) for place, arm in enumerate(arms[:-1])]
    return {"described": described, "records": records}

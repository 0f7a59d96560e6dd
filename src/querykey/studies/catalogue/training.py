"""Length of training, batch size, size of the network, and number of labels."""

from querykey.studies.engine.study import Arm, Figure, Published, Question, Study, exceeds

__all__ = ["BATCH_AND_EPOCHS", "FEW_LABELS", "WIDTH"]

IMAGES = 51_200
_BATCHES = (64, 256, 1024)

_CLAIMED = ((64, "linear", 1), (1024, "linear", 1), (64, "square_root", 1), (64, "linear", 2))
"""Batch size, learning-rate rule and length in the questions: they have three seeds, the others one."""


def _batch(size: int, rule: str, length: int) -> Arm:
    words = f"{rule.replace('_', ' ')} rule"
    longer = "" if length == 1 else ", twice as long"
    return Arm(
        name=f"{rule.replace('_', ' ')}, {size}, {length}",
        label=f"batch {size:,}, {words}{longer}",
        x=float(size),
        line=words + longer,
        images=float(length),
        seeds=3 if (size, rule, length) in _CLAIMED else 1,
        settings={"batch_size": size, "rule": rule},
    )


BATCH_AND_EPOCHS = Study(
    name="batch-and-epochs",
    title="Batch size and length of training, with both learning-rate rules",
    asks="Are large batches better, and does training longer make up for small ones?",
    source="SimCLR, arXiv:2002.05709, fig. 9 and table B.1",
    published=Published(
        what="linear accuracy on ImageNet, ResNet-50, %, linear / square-root rule, 100 and 800 epochs",
        rows=(("batch 256", "57.5 / 62.8, 66.6 / 66.5"), ("batch 1,024", "62.8 / 64.3, 68.5 / 68.3"),
              ("batch 8,192", "64.8 / 64.8, 69.0 / 69.1")),
    ),
    caveat="The number of images is equal, not the number of steps: in a few epochs a large batch takes "
    "few steps, which alone lowers its score. The paper's effect needs tens of epochs to show.",
    arms=(
        *(_batch(size, rule, 1) for rule in ("linear", "square_root") for size in _BATCHES),
        *(_batch(size, "linear", 2) for size in _BATCHES),
    ),
    questions=(
        exceeds("Is a batch of 1,024 better than one of 64, linear rule?", "linear, 1024, 1", "linear, 64, 1",
                "linear h", "yes: large batches are better at 100 epochs (fig. 9)"),
        exceeds("Is the square-root rule better for a batch of 64?", "square root, 64, 1", "linear, 64, 1",
                "linear h", "yes, by 5 points at batch 256 (table B.1)"),
        exceeds("Is a batch of 64 better than one of 1,024, if it is trained twice as long?", "linear, 64, 2",
                "linear, 1024, 1", "linear h", "yes: long training makes up for small batches (fig. 9)"),
    ),
    figures=(
        Figure(kind="lines", title="Linear accuracy of h against the batch", measures=("linear h",),
               x="batch size", y="linear accuracy of h", log_x=True),
    ),
    images=IMAGES,
    measured="linear accuracy of h",
)  # fmt: skip

_WIDTHS = (16, 32, 64)

WIDTH = Study(
    name="depth-and-width",
    title="Width and depth of the network",
    asks="Does a larger network gain more from pretraining?",
    source="SimCLR, arXiv:2002.05709, fig. 7",
    published=Published(
        what="linear accuracy on ImageNet, 1,000 epochs, %",
        rows=(("ResNet-50", "69.3"), ("twice as wide", "74.2"), ("four times", "76.5")),
    ),
    caveat="Networks for two cores: four blocks of one or two convolutions. All see the same number of "
    "images, so large networks take far longer.",
    arms=(
        *(
            Arm(name=f"width {width}", label=f"small_cnn:{width}", x=float(width), line="one convolution",
                settings={"backbone": f"small_cnn:{width}"})
            for width in _WIDTHS
        ),
        Arm(name="width 32, deeper", label="small_cnn:32x2", x=32.0, line="two convolutions",
            settings={"backbone": "small_cnn:32x2"}),
    ),
    questions=(
        exceeds("Is width 64 better than 16?", "width 64", "width 16", "linear h",
                "yes: larger is better (fig. 7)"),
        exceeds("Is width 64 better than 32?", "width 64", "width 32", "linear h",
                "yes, twice the width by 5 points (fig. 7)"),
        exceeds("Are two convolutions in a block better than one, at width 32?", "width 32, deeper",
                "width 32", "linear h", "yes: deeper is better (fig. 7)"),
    ),
    figures=(
        Figure(kind="lines", title="Accuracy against width and depth", measures=("linear h", "kNN h"),
               x="channels of the first block", y="accuracy of h", log_x=True),
    ),
    images=IMAGES,
    measured="linear accuracy and kNN of h",
)  # fmt: skip

_LABELS = (1, 5, 20, 100)


def _labelled(count: int) -> Arm:
    name = f"{count} a class"
    return Arm(name=name, label=name, x=float(count), line="labels", kind="few labels", labels_a_class=count)


def _is_better_than_supervised(count: int) -> Question:
    name = f"{count} a class"
    ask = f"With {name}, is a linear classifier of h better than supervised training?"
    published = "yes at 13 a class (table 7, 1%)" if count < 100 else "yes at 128 a class (table 7, 10%)"
    return Question(ask=ask, ours=(name, "linear h"), theirs=(name, "supervised"), published=published)


FEW_LABELS = Study(
    name="few-labels",
    title="Number of labels",
    asks="With how few labels is a pretrained encoder better than training on them alone?",
    source="SimCLR, arXiv:2002.05709, table 7",
    published=Published(
        what="top-5 accuracy on ImageNet, ResNet-50, 1% and 10% of the labels, %",
        rows=(("supervised", "48.4, 80.4"), ("SimCLR, fine-tuned", "75.5, 87.8")),
    ),
    caveat="Ten classes; one encoder per seed, and a new draw of labels with each.",
    arms=tuple(map(_labelled, _LABELS)),
    questions=tuple(map(_is_better_than_supervised, _LABELS)),
    figures=(
        Figure(
            kind="lines",
            title="Accuracy against labels",
            measures=("linear h", "supervised"),
            x="labels per class",
            y="accuracy",
            log_x=True,
        ),
    ),
    images=2 * IMAGES,
    measured="accuracy of a linear classifier of h, and of the same network trained on those labels alone",
)

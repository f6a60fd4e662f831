"""Settings of X2-VLM's tasks: the files of a task, and how it is evaluated."""

import dataclasses

from capret_jax.errors import InputError

# Task -> terms of the loss that train it.
TASK_LOSSES = {
    "retrieval": ("itc", "itm"),
    "vqa": ("vqa",),
    "grounding": ("box_l1", "box_giou"),
    "captioning": ("mlm",),
    "detection": ("locations",),
    "nlvr2": ("nlvr",),
}
# Task -> metrics by which the best model can be kept.
TASK_METRICS = {
    "retrieval": ("r_mean", "tr_1", "ir_1"),
    "vqa": ("accuracy",),
    "grounding": ("accuracy",),
    "captioning": ("CIDEr", "BLEU_4"),
    "detection": ("AP", "AP50"),
    "nlvr2": ("accuracy",),
}
# Annotators of a question of VQAv2, and so most distinct answers that are trained together.
VQA_ANSWERS = 10
# Key -> the only task that reads it.
_OWNERS = {
    "top_k": "retrieval",
    "answers": "vqa",
    "answers_ranked": "vqa",
    "refs": "grounding",
    "instances": "grounding",
    "beams": "captioning",
    "min_tokens": "captioning",
    "max_tokens": "captioning",
}
# Task -> keys of files that it cannot do without.
_NEEDED = {"vqa": ("answers",), "grounding": ("refs", "instances")}


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """A task of X2-VLM on annotation files, in place of photographs and shop items.

    The formats of the files are described in `tasks.readers`.

    Attributes:
        name: "retrieval" of pictures by captions and back, "vqa", "grounding" of phrases as boxes,
            "captioning", "detection" or "nlvr2"; empty for photographs and shop items.
        train: annotation files of the training split.
        test: annotation file to evaluate on.
        images: folder that the paths of pictures in these files start from.
        allow_missing: accept a file of which more than 1 % of the examples are left out, since
            their pictures are missing or their boxes impossible. Fewer are always left out, and
            counted in the metrics as `left_out`.
        answers: list of the answers that are ranked, VQA's `answer_list.json`.
        answers_ranked: number of these that the decoder scores for each question, those whose first
            token is the most probable.
        refs: REFER's file of references, `refs(unc).p` or the same as JSON.
        instances: COCO's `instances.json` with the references' boxes.
        beams: beams of the search for a caption.
        min_tokens, max_tokens: fewest and most tokens of a generated caption.
        top_k: captions of each picture, and pictures of each caption, that the fusion encoder
            re-ranks.
    """

    name: str = ""
    train: tuple[str, ...] = ()
    test: str = ""
    images: str = ""
    allow_missing: bool = False
    answers: str = ""
    answers_ranked: int = 128
    refs: str = ""
    instances: str = ""
    beams: int = 3
    min_tokens: int = 5
    max_tokens: int = 50
    top_k: int = 256

    def __post_init__(self):
        if self.name not in ("", *TASK_LOSSES):
            raise InputError(f"task.name={self.name!r} is none of {', '.join(TASK_LOSSES)}.")
        for field in dataclasses.fields(self):
            value, owner = getattr(self, field.name), _OWNERS.get(field.name, self.name)
            if value != field.default and (not self.name or owner != self.name):
                raise InputError(
                    f"task.{field.name}={value!r} is of task.name={owner or 'retrieval'!r}, and "
                    f"task.name={self.name!r} does not read it: leave it out."
                )
        if not self.name:
            return
        for key in ("test", "images", *_NEEDED.get(self.name, ())):
            if not getattr(self, key):
                raise InputError(f"task.name={self.name!r} needs task.{key}: name the file.")
        for key in ("answers_ranked", "beams", "min_tokens", "top_k"):
            if getattr(self, key) < 1:
                raise InputError(f"task.{key}={getattr(self, key)} must be at least 1.")
        if self.max_tokens < self.min_tokens:
            raise InputError(
                f"task.max_tokens={self.max_tokens} is less than task.min_tokens={self.min_tokens}."
            )

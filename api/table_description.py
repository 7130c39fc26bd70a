"""What is said beside a foreign table: its target, and the model's geometry outside the blocks."""

import re

from latency.errors import TableError, TargetError
from latency.table import Outside
from latency.target import Target, split_slug

_SETTING = re.compile(
    r"(?P<device>.+)-(?P<runtime>(?:eager|compile|onnxruntime|openvino|tensorrt)(?:-[a-z]+[0-9][0-9.]*)?)-(?P<dtype>[a-z0-9]+)"
)


def target_of(slug: str) -> Target:
    """A target from its slug, whose runtime is one that vitfit knows.

    Raises:
        TargetError: another text.
    """
    parts = split_slug(slug)
    found = parts and _SETTING.fullmatch(parts[0])
    if parts is None or found is None:
        raise TargetError(
            f"{slug!r:.100} is no slug of a target; it is <device>-<runtime>-<dtype>-b<batch>-n<tokens>, for example "
            "a100-eager-amp-b256-n197, with one of the runtimes eager, compile, onnxruntime, openvino, tensorrt"
        )
    return Target(found["device"], found["runtime"], found["dtype"], parts[1], parts[2])


def outside_of(image_size: int | None, patch_size: int | None, in_chans: int, num_classes: int, tokens: int) -> Outside:
    """The geometry outside the blocks; ImageNet's is taken for granted only for numbers of tokens that it can have.

    Raises:
        TableError: geometry that does not go with the tokens.
    """
    if image_size is None and patch_size is None and not 196 <= tokens <= 201:
        raise TableError(
            f"{tokens} tokens are not those of 224 x 224 pixels in patches of 16; say which image was timed"
        )
    image, patch = image_size or 224, patch_size or 16
    if (patches := (image // patch) ** 2) > tokens or patches == 0:
        raise TableError(
            f"{image} x {image} pixels in patches of {patch} are {patches} tokens, the target has {tokens}"
        )
    return Outside((image, image), (patch, patch), in_chans, num_classes)

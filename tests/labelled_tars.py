"""Labelled JPEGs of WebDataset tars, read by the standard library alone."""

import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path


def labelled_images(tars: Iterable[Path]) -> Iterator[tuple[int, bytes]]:
    """Class and bytes of each image that has a .cls member, tar by tar in their order."""
    for path in tars:
        label: dict[str, int] = {}
        image: dict[str, bytes] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                file = tar.extractfile(member)
                if file is not None and kind == "cls":
                    label[key] = int(file.read())
                elif file is not None and kind in {"jpg", "jpeg"}:
                    image[key] = file.read()
        for key, payload in image.items():
            yield label[key], payload

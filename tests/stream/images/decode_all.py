"""Program: decode every file of a folder's tars under a memory limit; print verdicts by key as JSON."""

import json
import resource
import sys
import tarfile
from pathlib import Path

import torch

from stream.errors import BadRecord
from stream.images.decode import decode_image

MORE_BYTES = 2 * 2**30


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def verdict(payload: bytes, max_pixels: int = 50_000_000) -> str:
    try:
        image = decode_image(payload, max_pixels=max_pixels)
    except BadRecord as error:
        return error.reason
    good = image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3 and image.numel() > 0
    return "ok" if good else "strange"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    limit_memory()
    verdicts = {}
    for tar in sorted(folder.glob("*.tar")):
        with tarfile.open(tar) as file:
            for member in file:
                if not member.name.endswith((".json", ".cls")):
                    content = file.extractfile(member)
                    assert content is not None
                    verdicts[member.name.split(".")[0]] = verdict(content.read())
    json.dump(verdicts, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

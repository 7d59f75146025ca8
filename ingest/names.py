"""What a file name says: image, archive, hidden or none of ours. Only names are looked at, never content."""

IMAGE_EXTENSIONS = frozenset((
    "apng", "avif", "avifs", "blp", "bmp", "bw", "cur", "dcx", "dds", "dib", "emf", "eps", "fit", "fits",
    "flc", "fli", "ftc", "ftu", "gbr", "gif", "heic", "heics", "heif", "heifs", "hif", "icb", "icns",
    "ico", "iim", "im", "j2c", "j2k", "jfif", "jif", "jp2", "jpc", "jpe", "jpeg", "jpf", "jpg", "jpx",
    "jxl", "mpo", "msp", "pbm", "pcd", "pcx", "pfm", "pgm", "png", "pnm", "ppm", "psd", "pxr", "qoi",
    "ras", "rgb", "rgba", "sgi", "sun", "svg", "svgz", "tga", "tif", "tiff", "vda", "vst", "webp", "wmf",
    "xbm", "xpm",
))  # fmt: skip
"""Names that promise an image, whether or not it can be decoded: what cannot is counted, not overlooked."""
ARCHIVE_ENDINGS = (".tar", ".tar.gz", ".tgz")
OTHER_ARCHIVES = (".zip", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".7z", ".rar", ".parquet")


def is_image(name: str) -> bool:
    """Whether a name ends like that of an image, in any case of letters."""
    return name.rpartition("/")[2].rpartition(".")[2].lower() in IMAGE_EXTENSIONS and "." in name


def is_archive(name: str) -> bool:
    """Whether a name ends like that of a tar or a gzipped tar."""
    return name.lower().endswith(ARCHIVE_ENDINGS)


def is_hidden(name: str) -> bool:
    """Whether a part of a relative name is hidden (starts with a dot) or what macOS leaves in archives."""
    parts = name.split("/")
    return any((part.startswith(".") and part not in {".", ".."}) or part == "__MACOSX" for part in parts)


def shown(name: str) -> str:
    """A name that can be printed and stored: control characters and undecodable bytes are escaped."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)

"""Records as samples, and what is made of strangers' samples."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stream.errors import BadRecord
from stream.record import Record, decode_sample, encode_sample, media_type_of, sha256_of
from tests.stream.make_shards import image_bytes, image_record

JPEG = image_bytes(0)


def decoded(*, json_bytes: bytes | None = None, cls: bytes | None = None) -> Record:
    return decode_sample(JPEG, "jpg", json_bytes, cls)


@given(
    label=st.none() | st.integers(0, 2**31 - 1),
    label_name=st.none() | st.text(min_size=1),
    source=st.text(),
    size=st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)) | st.just((0, 0)),
)
def test_a_record_comes_back_from_its_sample(
    label: int | None, label_name: str | None, source: str, size: tuple[int, int]
) -> None:
    record = Record(
        payload=JPEG,
        sha256=sha256_of(JPEG),
        media_type="image/jpeg",
        width=size[0],
        height=size[1],
        source=source,
        label=label,
        label_name=label_name,
    )
    sample = encode_sample(record, "shard-000001-0123456789abcdef")
    cls = sample.get("cls")
    json_bytes = sample["json"]
    assert isinstance(json_bytes, bytes)
    assert cls is None or isinstance(cls, bytes)
    assert decode_sample(JPEG, "jpg", json_bytes, cls) == record


def test_a_file_name_that_is_no_text_survives() -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    record = Record(payload=JPEG, sha256=sha256_of(JPEG), media_type="image/jpeg", source=name)
    body = encode_sample(record, "k")["json"]
    assert isinstance(body, bytes)
    assert decoded(json_bytes=body).source == name


def test_members_are_the_image_the_json_and_the_class() -> None:
    record = image_record(3, label=7)
    sample = encode_sample(record, "k")
    assert sorted(sample) == ["__key__", "cls", "jpg", "json"]
    assert sample["cls"] == b"7"
    assert json.loads(sample["json"]) == {
        "sha256": record.sha256,
        "media_type": "image/jpeg",
        "width": 8,
        "height": 6,
        "source": "folder/3.jpg",
        "label": 7,
    }


@pytest.mark.parametrize("key", ["", "a.b", "a/b"])
def test_a_key_that_webdataset_would_cut_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        encode_sample(image_record(1), key)


def test_a_record_without_its_digest_cannot_be_stored() -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        encode_sample(Record(payload=JPEG, sha256="", media_type="image/jpeg"), "k")


@pytest.mark.parametrize("label", [-1, 2**31])
def test_a_label_that_readers_cannot_keep_is_not_stored(label: int) -> None:
    with pytest.raises(ValueError, match="label"):
        encode_sample(image_record(1, label=label), "k")


@pytest.mark.parametrize(("text", "label"), [(b"7", 7), (b" 7 ", 7), (b"0\n", 0), (b"2147483647", 2**31 - 1)])
def test_a_class_member_is_a_whole_number(text: bytes, label: int) -> None:
    record = decoded(cls=text)
    assert (record.label, record.bad_label) == (label, False)


@pytest.mark.parametrize(
    "text",
    [b"cat\n", b"-1", b"3.0", b"99999999999999999999", b"\xff\xfe", b"0x05", b"None", b"", b"2147483648"],
)
def test_a_bad_class_leaves_the_image_in_and_is_told(text: bytes) -> None:
    record = decoded(cls=text)
    assert (record.payload, record.label, record.bad_label) == (JPEG, None, True)


@pytest.mark.parametrize("label", ["cat", 1.0, True, -1, 2**31, [1], {"a": 1}])
def test_a_bad_json_label_leaves_the_image_in_and_is_told(label: object) -> None:
    record = decoded(json_bytes=json.dumps({"label": label}).encode())
    assert (record.label, record.bad_label) == (None, True)


def test_the_class_member_comes_before_the_json_label() -> None:
    assert decoded(json_bytes=b'{"label": 3}', cls=b"5").label == 5


def test_a_bad_class_member_is_not_replaced_by_the_json_label() -> None:
    record = decoded(json_bytes=b'{"label": 3}', cls=b"x")
    assert (record.label, record.bad_label) == (None, True)


def test_the_label_name_stands_beside_or_instead_of_the_number() -> None:
    record = decoded(json_bytes=b'{"label_name": "cat"}')
    assert (record.label, record.label_name, record.bad_label) == (None, "cat", False)


@pytest.mark.parametrize("body", [b'{"label": 1', b"", b"\xff", b"[" * 100_000, b"[1]", b"1" * 5000])
def test_json_that_cannot_be_read_leaves_the_image_in(body: bytes) -> None:
    record = decoded(json_bytes=body)
    assert (record.payload, record.label, record.bad_label) == (JPEG, None, True)


def test_json_that_cannot_be_read_does_not_spoil_a_good_class() -> None:
    record = decoded(json_bytes=b"{", cls=b"4")
    assert (record.label, record.bad_label) == (4, False)


def test_a_sample_without_label_is_no_bad_label() -> None:
    assert decoded() == Record(payload=JPEG, sha256="", media_type="image/jpeg")


def test_an_image_without_bytes_is_a_bad_record() -> None:
    with pytest.raises(BadRecord) as caught:
        decode_sample(b"", "jpg", None, None)
    assert caught.value.reason == "empty"


@given(body=st.binary(max_size=200), cls=st.none() | st.binary(max_size=20))
def test_no_bytes_beside_an_image_do_harm(body: bytes, cls: bytes | None) -> None:
    record = decode_sample(JPEG, "jpg", body, cls)
    assert record.payload == JPEG


@given(
    body=st.dictionaries(
        st.sampled_from(["sha256", "media_type", "width", "height", "source", "label", "label_name", "url"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner, max_size=2),
            max_leaves=3,
        ),
    )
)
def test_fields_of_any_type_give_fields_of_the_right_type(body: dict[str, object]) -> None:
    record = decoded(json_bytes=json.dumps(body).encode())
    assert isinstance(record.source, str)
    assert isinstance(record.sha256, str)
    assert type(record.width) is int
    assert record.width >= 0
    assert record.label is None or type(record.label) is int
    assert record.label_name is None or isinstance(record.label_name, str)
    assert record.media_type == "image/jpeg"


@pytest.mark.parametrize(
    ("kind", "media_type"),
    [
        ("JPEG", "image/jpeg"),
        ("PNG", "image/png"),
        ("GIF", "image/gif"),
        ("WEBP", "image/webp"),
        ("BMP", "image/bmp"),
        ("TIFF", "image/tiff"),
        ("PPM", "image/x-portable-anymap"),
        ("JPEG2000", "image/jp2"),
        ("ICO", "image/x-icon"),
        ("AVIF", "image/avif"),
    ],
)
def test_the_media_type_is_that_of_the_bytes(kind: str, media_type: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 10, 10)).save(file, kind)
    assert media_type_of(file.getvalue()) == media_type


@pytest.mark.parametrize(
    "data", [b"", b"BM", b"BMW is a car maker, and this is text", b"<html>", b"RIFF1234WAVE", b"P7"]
)
def test_other_bytes_have_no_image_type(data: bytes) -> None:
    assert media_type_of(data) is None


def test_the_bytes_win_over_the_name() -> None:
    assert decode_sample(JPEG, "png", b'{"media_type": "image/gif"}', None).media_type == "image/jpeg"


def test_the_name_is_believed_where_nothing_else_tells() -> None:
    assert decode_sample(b"strange", "left.jpeg", None, None).media_type == "image/jpeg"
    assert decode_sample(b"strange", "xyz", None, None).media_type == "application/octet-stream"

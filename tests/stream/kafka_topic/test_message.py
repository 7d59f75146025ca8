import hashlib
from dataclasses import replace

import pytest

from stream.errors import BadRecord
from stream.kafka_topic.message import Headers, decode_message, encode_message
from stream.record import Record
from tests.stream.kafka_topic.make_topic import record_of


def back(value: bytes | None, headers: Headers, *, max_bytes: int = 10**6, verify: bool = True) -> Record:
    return decode_message(value, headers, max_bytes=max_bytes, verify=verify)


def changed(headers: Headers, **values: bytes) -> Headers:
    return [(name, values.get(name, value)) for name, value in headers]


def reason(value: bytes | None, headers: Headers, max_bytes: int = 10**6) -> str:
    with pytest.raises(BadRecord) as caught:
        back(value, headers, max_bytes=max_bytes)
    return caught.value.reason


def test_a_record_comes_back_from_its_message() -> None:
    record = replace(
        record_of(3), width=17, height=12, label=7, label_name="caf\u00e9", source="dir/\udcff odd.jpg"
    )
    key, headers = encode_message(record)
    assert key == record.sha256.encode()
    assert back(record.payload, headers) == record


def test_headers_are_pairs_of_text_and_bytes_with_size_media_type_and_version() -> None:
    record = record_of(1)
    _, headers = encode_message(record)
    known = dict(headers)
    assert all(type(name) is str and type(value) is bytes for name, value in headers)
    assert known["size"] == str(len(record.payload)).encode()
    assert known["media_type"] == b"image/jpeg"
    assert (known["format"], known["mode"]) == (b"1", b"inline")


def test_a_record_without_a_digest_is_not_sent() -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        encode_message(replace(record_of(1), sha256=""))


def test_a_strangers_message_is_a_bare_image() -> None:
    payload = record_of(2).payload
    record = back(payload, [("sha256", b"of something else"), ("label", b"4")])
    assert (record.payload, record.sha256, record.media_type, record.label) == (payload, "", "image/png", 4)


def test_other_versions_and_images_by_reference_are_refused_by_name() -> None:
    record = record_of(1)
    _, headers = encode_message(record)
    assert reason(record.payload, changed(headers, format=b"2")) == "unknown_format"
    assert reason(record.payload, changed(headers, mode=b"ref")) == "unknown_format"


def test_bytes_that_were_changed_on_the_way_are_found() -> None:
    record = record_of(1)
    _, headers = encode_message(record)
    flipped = bytes([record.payload[0], record.payload[1] ^ 1]) + record.payload[2:]
    assert reason(flipped, headers) == "bad_checksum"
    assert reason(record.payload[:-1], headers) == "bad_checksum"
    assert back(flipped, headers, verify=False).sha256 == record.sha256 != hashlib.sha256(flipped).hexdigest()


def test_empty_and_oversize_messages_are_refused() -> None:
    record = record_of(1)
    _, headers = encode_message(record)
    assert reason(None, headers) == reason(b"", headers) == "empty"
    assert reason(record.payload, headers, max_bytes=10) == "too_large"


@pytest.mark.parametrize("label", [b"", b"-1", b"x", b"99999999999", b"2147483648"])
def test_a_label_that_cannot_be_used_leaves_the_image_in(label: bytes) -> None:
    record = back(record_of(1).payload, [("label", label)])
    assert (record.label, record.bad_label) == (None, True)

"""Large objects into S3: in parts, gone on with after a kill, never mixed with what others left behind."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from keynet_core import ObjectCorrupt, ObjectInfo, S3Settings, StoreUnavailable, read_settings
from keynet_core._s3_multipart import begin
from keynet_core._s3_store import S3Store
from keynet_core._s3_transfers import Transfers

PART = 5 << 20
PARTS = 8
DATA = os.urandom(PARTS * PART - 1000)
INFO = ObjectInfo(size_bytes=len(DATA), sha256=hashlib.sha256(DATA).hexdigest())
SERVERS = pytest.mark.parametrize("engine", ["ceph", "swift"])


@pytest.fixture
def store(open_engine, engine):
    return cut(open_engine(engine).url)


def cut(url, **more):
    """Return the store of an address with small parts."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    settings = read_settings(S3Settings, os.environ)
    return S3Store(bucket, prefix, settings=settings, transfers=Transfers(part_bytes=PART, workers=2, **more))


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").write_bytes(DATA)
    return tmp_path / "source"


@pytest.fixture
def behind(request, engine):
    return request.getfixturevalue(engine).client()


@contextmanager
def during(store, event, react):
    """Call `react` with the number of times that an event happened, each time."""
    lock, count = threading.Lock(), [0]

    def note(**_told):
        with lock:
            count[0] += 1
            number = count[0]
        react(number)

    events = store._bucket.client.meta.events
    events.register(event, note)
    try:
        yield count
    finally:
        events.unregister(event, note)


def sent_by(store):
    return during(store, "before-call.s3.UploadPart", lambda _number: None)


def place_of(store, key):
    bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
    return {"Bucket": bucket, "Key": f"{prefix}/{key}"}


def left_over(store, behind):
    """Return the unfinished uploads of all keys, as key and id."""
    bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
    told = behind.list_multipart_uploads(Bucket=bucket, Prefix=f"{prefix}/").get("Uploads", ())
    return [(each["Key"].removeprefix(f"{prefix}/"), each["UploadId"]) for each in told]


def unfinished(store, behind):
    """Return the unfinished uploads of the object."""
    return [upload for key, upload in left_over(store, behind) if key == "a"]


def begin_elsewhere(behind, place, parts):
    """Begin an upload as another tool does, with these bytes as its parts."""
    upload = behind.create_multipart_upload(**place)["UploadId"]
    send(behind, place, upload, parts)
    return upload


def begin_here(store, behind, parts):
    """Begin an upload of the file as keynet does, with these bytes as its parts."""
    place = place_of(store, "a")
    upload = begin(store._bucket, place["Key"], INFO).id
    send(behind, place, upload, parts)
    return upload


def send(behind, place, upload, parts):
    for number, data in parts.items():
        behind.upload_part(**place, UploadId=upload, PartNumber=number, Body=data)


def assert_right(store, tmp_path):
    assert store.stat("a") == store.get_file("a", tmp_path / "back") == INFO
    assert (tmp_path / "back").read_bytes() == DATA


KILLED = """
import os, signal, sys, threading
from pathlib import Path
from keynet_core import S3Settings, read_settings
from keynet_core._s3_store import S3Store
from keynet_core._s3_transfers import Transfers
bucket, prefix, source, part, event, number = sys.argv[1:]
cut = Transfers(part_bytes=int(part), workers=2)
store = S3Store(bucket, prefix, settings=read_settings(S3Settings, os.environ), transfers=cut)
left = threading.Semaphore(int(number))
def note(**told):
    if not left.acquire(blocking=False):
        os.kill(os.getpid(), signal.SIGKILL)
store._bucket.client.meta.events.register(event, note)
store.put_file("a", Path(source))
"""


@pytest.fixture
def kill(store, source, python):
    """Return a function that stores the source in a process that is killed when an event happened so often before."""

    def kill_at(event="after-call.s3.UploadPart", number=4):
        bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
        done = python(KILLED, bucket, prefix, source, PART, event, number)
        assert done.returncode == -9, done.stderr

    return kill_at


@SERVERS
def test_a_killed_upload_is_gone_on_with(store, behind, source, tmp_path, kill):
    kill()
    assert store.stat("a") is None
    assert list(store.list("")) == []
    assert len(unfinished(store, behind)) == 1
    with sent_by(store) as sent:
        assert store.put_file("a", source) == INFO
    assert 1 <= sent[0] <= PARTS - 4
    assert_right(store, tmp_path)
    assert left_over(store, behind) == []


@SERVERS
def test_a_killed_upload_of_another_file_is_not_gone_on_with(store, behind, source, tmp_path, kill):
    kill()
    source.write_bytes(os.urandom(len(DATA)))
    with sent_by(store) as sent:
        info = store.put_file("a", source)
    assert sent[0] == PARTS
    assert store.stat("a") == store.get_file("a", tmp_path / "back") == info


@SERVERS
def test_a_killed_upload_of_a_file_that_begins_alike_never_lends_its_digest(store, behind, source, tmp_path, kill):
    """What an object carries was told when its upload began: no moment may be, in which it is another file's."""
    kill()
    begun = unfinished(store, behind)
    other = DATA[:-1000] + os.urandom(1000)
    source.write_bytes(other)
    kill("after-call.s3.CompleteMultipartUpload", 0)
    info = ObjectInfo(size_bytes=len(other), sha256=hashlib.sha256(other).hexdigest())
    assert store.stat("a") == store.get_file("a", tmp_path / "back") == info
    assert unfinished(store, behind) == begun

    source.write_bytes(DATA)
    with sent_by(store) as sent:
        assert store.put_file("a", source) == INFO
    assert sent[0] <= PARTS - 4
    assert_right(store, tmp_path)


MOMENTS = [
    ("after-call.s3.CreateMultipartUpload", 0),
    ("after-call.s3.CreateMultipartUpload", 1),
    ("after-call.s3.UploadPart", 0),
    ("before-call.s3.CompleteMultipartUpload", 0),
    ("after-call.s3.CompleteMultipartUpload", 0),
    ("after-call.s3.AbortMultipartUpload", 0),
]


@pytest.mark.parametrize("engine", ["ceph"])
@pytest.mark.parametrize(("event", "number"), MOMENTS)
def test_whenever_it_is_killed_the_next_upload_leaves_the_object_and_nothing_else(
    store, behind, source, tmp_path, kill, event, number
):
    kill(event, number)
    assert store.stat("a") in {None, INFO}
    assert cut(store.url, abandoned_s=-60.0).put_file("a", source) == INFO
    assert_right(store, tmp_path)
    assert left_over(store, behind) == []


WRONG = {
    "other bytes": {1: os.urandom(PART)},
    "one part of other bytes": {1: DATA[:PART], 2: os.urandom(PART)},
    "another size": {1: DATA[: PART + 1]},
    "a part too many": {1: DATA[:PART], PARTS + 1: b"more"},
    "the last part too long": {PARTS: DATA[(PARTS - 1) * PART :] + b"more"},
    "no part": {},
}


@pytest.mark.parametrize("engine", ["ceph"])
@pytest.mark.parametrize("parts", WRONG.values(), ids=WRONG)
def test_parts_that_are_not_the_files_are_never_believed(store, behind, source, tmp_path, parts):
    upload = begin_here(store, behind, parts)
    with sent_by(store) as sent:
        assert store.put_file("a", source) == INFO
    assert sent[0] == PARTS
    assert_right(store, tmp_path)
    assert unfinished(store, behind) == [upload], "it may be somebody's who is still at it"


@SERVERS
def test_an_abandoned_upload_that_does_not_fit_is_removed(store, behind, source, tmp_path):
    place = place_of(store, "a")
    begin_elsewhere(behind, place, WRONG["other bytes"])
    begin_here(store, behind, WRONG["other bytes"])
    other = begin_elsewhere(behind, {**place, "Key": f"{place['Key']}b"}, WRONG["other bytes"])
    assert cut(store.url, abandoned_s=-60.0).put_file("a", source) == INFO
    assert_right(store, tmp_path)
    assert left_over(store, behind) == [("ab", other)]


@SERVERS
def test_an_upload_that_does_not_tell_for_which_digest_is_not_gone_on_with(store, behind, source, tmp_path):
    """Parts that fit say nothing of the metadata, which was given when the upload began."""
    begun = begin_elsewhere(behind, place_of(store, "a"), {1: DATA[:PART], 3: DATA[2 * PART : 3 * PART]})
    with sent_by(store) as sent:
        assert store.put_file("a", source) == INFO
    assert sent[0] == PARTS
    assert_right(store, tmp_path)
    assert left_over(store, behind) == [("a", begun)], "it may be somebody's who is still at it"


@SERVERS
@pytest.mark.parametrize("length", [900, 970], ids=["for Swift", "at all"])
def test_a_key_that_leaves_no_room_for_a_label_is_stored_all_the_same(store, behind, source, length):
    key = "k" * (length - len(place_of(store, "")["Key"]))
    assert store.put_file(key, source) == store.stat(key) == INFO
    assert left_over(store, behind) == []


@SERVERS
def test_an_upload_that_somebody_aborts_begins_again(store, behind, source, tmp_path):
    place = place_of(store, "a")

    def abort(number):
        if number == 3:
            behind.abort_multipart_upload(**place, UploadId=unfinished(store, behind)[0])

    with during(store, "after-call.s3.UploadPart", abort):
        assert store.put_file("a", source) == INFO
    assert_right(store, tmp_path)
    assert left_over(store, behind) == []


@SERVERS
def test_an_upload_that_somebody_completes_is_done(store, behind, source, tmp_path):
    """As when its answer was lost, or another process with the same file was faster."""
    place = place_of(store, "a")

    def complete(number):
        upload = unfinished(store, behind)[0]
        told = behind.list_parts(**place, UploadId=upload)["Parts"]
        parts = [{"PartNumber": each["PartNumber"], "ETag": each["ETag"]} for each in told]
        behind.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})

    with during(store, "before-call.s3.CompleteMultipartUpload", complete) as completed:
        assert store.put_file("a", source) == INFO
    assert completed[0] == 1
    assert_right(store, tmp_path)
    assert left_over(store, behind) == []


@SERVERS
def test_two_at_once_with_the_same_file_both_succeed(store, source, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: cut(store.url).put_file("a", source), range(3))) == [INFO] * 3
    assert_right(store, tmp_path)


@pytest.mark.parametrize("engine", ["ceph"])
def test_a_file_that_changes_while_it_is_stored_is_not_stored(store, behind, source):
    def spoil(number):
        if number == 1:
            with source.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(bytes([DATA[-1] ^ 1]))

    with during(store, "before-call.s3.UploadPart", spoil), pytest.raises(ObjectCorrupt):
        store.put_file("a", source)
    assert store.stat("a") is None
    assert left_over(store, behind) == []


@pytest.mark.parametrize("engine", ["ceph"])
def test_a_file_that_shrinks_while_it_is_stored_is_not_stored(store, source):
    def shrink(_number):
        os.truncate(source, PART)

    with during(store, "before-call.s3.UploadPart", shrink), pytest.raises(ObjectCorrupt):
        store.put_file("a", source)
    assert store.stat("a") is None


@contextmanager
def denied(behind, bucket, action, resource=""):
    deny = {"Effect": "Deny", "Principal": "*", "Action": action, "Resource": f"arn:aws:s3:::{bucket}{resource}"}
    behind.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]}))
    try:
        yield
    finally:
        behind.delete_bucket_policy(Bucket=bucket)


@pytest.mark.parametrize("engine", ["ceph"])
def test_keys_that_may_not_list_uploads_may_still_upload(store, behind, source, tmp_path):
    with denied(behind, place_of(store, "a")["Bucket"], "s3:ListBucketMultipartUploads"):
        with pytest.raises(ClientError, match="AccessDenied"):
            unfinished(store, behind)
        assert store.put_file("a", source) == INFO
    assert_right(store, tmp_path)


@pytest.mark.parametrize("engine", ["ceph"])
def test_an_upload_whose_parts_may_not_be_listed_is_left_to_whoever_is_at_it(store, behind, source, tmp_path):
    place = place_of(store, "a")
    begun = begin_elsewhere(behind, place, WRONG["other bytes"])
    time.sleep(6)
    with denied(behind, place["Bucket"], "s3:ListMultipartUploadParts", "/*"):
        with pytest.raises(ClientError, match="AccessDenied"):
            behind.list_parts(**place, UploadId=begun)
        assert cut(store.url, abandoned_s=5).put_file("a", source) == INFO
    assert_right(store, tmp_path)
    assert left_over(store, behind) == [("a", begun)]


def test_a_server_killed_in_the_middle_is_unavailable_and_what_it_had_is_not_sent_again(
    ceph, open_engine, source, tmp_path
):
    store = cut(open_engine("ceph").url)

    def kill(number):
        if number == 5:
            ceph.kill()

    with during(store, "after-call.s3.UploadPart", kill), pytest.raises(StoreUnavailable):
        store.put_file("a", source)
    ceph.start()
    with sent_by(store) as sent:
        assert store.put_file("a", source) == INFO
    assert 1 <= sent[0] <= PARTS - 4
    assert_right(store, tmp_path)


@given(st.integers(min_value=1, max_value=5 * 2**40))
def test_no_object_has_over_ten_thousand_parts_or_fills_the_memory(size_bytes):
    transfers = Transfers()
    part_bytes = transfers.part_size(size_bytes)
    assert -(-size_bytes // part_bytes) <= 10_000
    assert 16 << 20 <= part_bytes <= 5 * 2**30
    workers = transfers.workers_for(part_bytes)
    assert workers == 1 or workers * part_bytes <= 256 << 20
    assert replace(transfers, workers=100).workers_for(16 << 20) == 16

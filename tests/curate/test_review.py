"""Review by people: answers that are only added to, who passes, who agrees; the page over real HTTP, and refusals."""

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.curate.clip import Clip, clip_id
from openhunyuan.curate.ladder import Ladder, TrainingSet, climb, write_sets
from openhunyuan.curate.review import (
    KEPT,
    SFT,
    VIEWS,
    Answer,
    Answers,
    Review,
    Rule,
    agreement,
    cohen_kappa,
    fleiss_kappa,
    forget_answers,
    has_review,
    members,
    read_rule,
    rule_from,
    verdict,
    views_of,
    write_rule,
)
from openhunyuan.curate.serve_review import LARGEST, ReviewServer

GOOD = {view.key: True for view in VIEWS}


def make_clip(number: int, data: Path | None = None, kind: Any = "video", sets: tuple[str, ...] = ("720p",)) -> Clip:
    path = f"store/{number}.{'png' if kind == 'image' else 'mp4'}"
    if data:
        (data / "store").mkdir(parents=True, exist_ok=True)
        (data / path).write_bytes(bytes(range(100)))
    return Clip(
        id=clip_id(str(number), 0, 48), kind=kind, source="a.mp4", source_sha256=str(number), start_frame=0,
        end_frame=48, fps=24.0, height=144, width=256, path=path, sha256=f"{number:064x}", sets=sets,
    )  # fmt: skip


def answer(annotator: str, number: int, skipped: str | None = None, **views: bool) -> Answer:
    judged = {} if skipped else {**GOOD, **views}
    clip = make_clip(number)
    return Answer(
        time="2026-01-01T00:00:00+00:00", annotator=annotator, clip=clip.id, sha256=str(clip.sha256), views=judged,
        skipped=skipped,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- answers


def test_answers_are_added_to_and_the_newest_of_each_person_counts(tmp_path: Path) -> None:
    answers = Answers(tmp_path)
    answers.add(answer("ann", 1))
    before = answers.path.read_bytes()
    answers.add(answer("ben", 1))
    answers.add(answer("ann", 1, blur=False))
    assert answers.path.read_bytes().startswith(before), "nothing that was written is changed"
    again = Answers(tmp_path)
    assert list(again.newest()) == [("ann", f"{1:064x}"), ("ben", f"{1:064x}")]
    assert [a.views["blur"] for a in again.newest().values()] == [False, True]
    assert len(again.path.read_text().splitlines()) == 3


def test_a_line_that_a_death_cut_off_is_dropped_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    Answers(tmp_path).add(answer("ann", 1))
    path = tmp_path / "review/answers.jsonl"
    path.write_bytes(path.read_bytes() + b'{"time": "2026')
    answers = Answers(tmp_path)
    answers.add(answer("ben", 2))
    assert [a.annotator for a in Answers(tmp_path).newest().values()] == ["ann", "ben"]
    path.write_text(path.read_text() + '{"nothing": 1}\n')
    with pytest.raises(UserError, match="Line 3"):
        Answers(tmp_path)


def test_two_that_write_take_nothing_from_each_other(tmp_path: Path) -> None:
    one, other = Answers(tmp_path), Answers(tmp_path)
    for number in range(3):
        one.add(answer("ann", number))
    other.add(answer("bob", 0))
    one.add(answer("ann", 3))
    lines = one.path.read_text().splitlines()
    assert [json.loads(line)["annotator"] for line in lines] == ["ann", "ann", "ann", "bob", "ann"]
    assert one.newest() == other.newest() == Answers(tmp_path).newest()
    forget_answers(tmp_path, {make_clip(0).id})
    assert len(one.newest()) == 3, "what is forgotten elsewhere is forgotten here"
    one.add(answer("ann", 4))
    assert len(Answers(tmp_path).newest()) == 4


def test_a_review_is_served_once(tmp_path: Path) -> None:
    review = Review(tmp_path, [make_clip(1, tmp_path)], Rule())
    first = ReviewServer(review)
    with pytest.raises(UserError, match="is being served already"):
        ReviewServer(review)
    first.start()
    first.close()
    again = ReviewServer(review)
    again.start()
    again.close()


def test_a_clip_passes_by_a_majority_in_every_view_of_enough_people() -> None:
    two = Rule(people=2)
    assert verdict([answer("a", 1)], two) is None
    assert verdict([answer("a", 1), answer("b", 1)], two) is True
    assert verdict([answer("a", 1), answer("b", 1, layout=False)], two) is False, "a tie does not pass"
    assert verdict([answer("a", 1), answer("b", 1, layout=False), answer("c", 1)], two) is True
    # Majorities in different views: each view is looked at by itself.
    assert verdict([answer("a", 1, blur=False), answer("b", 1, blur=False), answer("c", 1)], two) is False


def test_kappas_are_those_of_the_books() -> None:
    # Two people about fifty proposals: both yes 20, only the first 5, only the second 10, both no 15.
    pairs = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    assert cohen_kappa(pairs) == pytest.approx(0.4)
    # Fourteen people, ten things, five kinds: the usual worked example, 0.210.
    counts = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa([*counts, [1, 0, 0, 0, 0]]) == fleiss_kappa(counts), "one person alone says nothing"
    assert fleiss_kappa([[2, 0], [2, 0]]) is None and cohen_kappa([(1, 1)]) is None and fleiss_kappa([]) is None


def test_agreement_is_by_view_and_by_pair() -> None:
    given = [answer("ann", n, blur=n % 2 == 0) for n in range(8)]
    given += [answer("ben", n, blur=n % 2 == 0) for n in range(8)]
    given += [answer("cid", n, blur=n % 2 == 1) for n in range(4)] + [answer("dan", 1, skipped="dark")]
    found = {one.view: one for one in agreement(given)}
    blur = found["blur"]
    assert [(a, b, n, k) for a, b, n, k in blur.pairs] == [
        ("ann", "ben", 8, 1.0),
        ("ann", "cid", 4, -1.0),
        ("ben", "cid", 4, -1.0),
    ]
    assert blur.clips == 8
    assert blur.alike == pytest.approx((4 * 1 + 4 * 1 / 3) / 8)
    assert (found["colour"].alike, found["colour"].fleiss) == (1.0, None), "all said the same"


def test_forgotten_clips_take_their_answers_along(tmp_path: Path) -> None:
    assert forget_answers(tmp_path, {"x"}) == 0
    for number in (1, 2):
        Answers(tmp_path).add(answer("ann", number))
    assert forget_answers(tmp_path, {make_clip(1).id}) == 1
    assert [a.clip for a in Answers(tmp_path).newest().values()] == [make_clip(2).id]


# ------------------------------------------------------------------------------------------------------- sets and order


def laddered(data: Path) -> list[Clip]:
    """Twenty clips of 256p, ten of them of 720p, and one dropped."""
    clips = [make_clip(n, data, sets=()) for n in range(21)]
    clips[20] = clips[20].drop("motion", "hardly moves")
    top = TrainingSet(name="720p", sources=("a.mp4",))
    found = climb(clips, Ladder(sets=(TrainingSet(name="256p"), top)), (), ())
    write_sets(data, found)
    return [
        c.model_copy(update={"sets": ("256p",) if n >= 10 and c.sets else c.sets}) for n, c in enumerate(found.clips)
    ]


def test_members_of_a_set_and_of_those_that_people_chose(tmp_path: Path) -> None:
    clips = laddered(tmp_path)
    assert [len(members(tmp_path, clips, name)) for name in ("256p", "720p", KEPT)] == [20, 10, 20]
    with pytest.raises(UserError, match="have some judged with: openhunyuan curate review"):
        members(tmp_path, clips, SFT)
    with pytest.raises(UserError, match="did you mean 720p"):
        members(tmp_path, clips, "720")
    write_rule(tmp_path, Rule(reviewed="720p"))
    answers = Answers(tmp_path)
    for number, good in ((1, True), (2, False), (12, True), (20, True)):
        answers.add(answer("ann", number, colour=good))
    # 12 is not of the set under review, 20 was dropped.
    assert [c.id for c in members(tmp_path, clips, SFT)] == [clips[1].id]


def test_the_rule_is_kept_and_changed_by_what_is_given(tmp_path: Path) -> None:
    assert rule_from(tmp_path, None, None, None) == Rule(reviewed=KEPT)
    laddered(tmp_path)
    rule = rule_from(tmp_path, None, 2, None)
    assert (rule.reviewed, rule.people) == ("720p", 2), "the best set that was built"
    write_rule(tmp_path, rule)
    assert rule_from(tmp_path, None, None, 0.5) == read_rule(tmp_path).model_copy(update={"overlap": 0.5})
    with pytest.raises(UserError, match="people"):
        rule_from(tmp_path, None, 0, None)


def test_everyone_gets_their_own_clips_and_all_get_some(tmp_path: Path) -> None:
    clips = [make_clip(n, tmp_path) for n in range(50)]
    review = Review(tmp_path, clips, Rule(reviewed=KEPT, people=2, overlap=0.2))
    common = [c for c in clips if review.for_everyone(c)]
    assert 3 <= len(common) <= 20
    judged: dict[str, list[str]] = {name: [] for name in ("ann", "ben", "cid")}
    for name in judged:
        while (clip := review.next(name)) is not None:
            review.answer(name, clip, GOOD, None, 1.0)
            judged[name].append(clip.id)
    assert len(judged["ann"]) == len(judged["ben"]) == 50
    # Two people have judged all: the third is asked about the common part only.
    assert set(judged["cid"]) == {c.id for c in common}
    assert review.counts() == {"passed": 50, "failed": 0, "open": 0}
    assert judged["ann"] != [c.id for c in clips], "the order is mixed"


# ---------------------------------------------------------------------------------------------------------------- HTTP


class Client:
    """One annotator's browser."""

    def __init__(self, url: str) -> None:
        self.host = url.removeprefix("http://").rstrip("/")

    def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection(self.host, timeout=30)
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        try:
            connection.request(method, path, raw, {"Content-Type": "application/json", **(headers or {})})
            reply = connection.getresponse()
            return reply.status, reply.read(), dict(reply.getheaders())
        finally:
            connection.close()

    def json(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        status, content, _ = self.send(method, path, body, headers)
        return status, json.loads(content)


@pytest.fixture
def review(tmp_path: Path) -> Review:
    (tmp_path / "secret.txt").write_text("secret")
    clips = [make_clip(n, tmp_path, "image" if n == 3 else "video") for n in range(4)]
    return Review(tmp_path, clips, Rule(reviewed="kept", overlap=0.0))


@pytest.fixture
def server(review: Review) -> Iterator[ReviewServer]:
    server = ReviewServer(review)
    server.start()
    yield server
    server.close()


@pytest.fixture
def client(server: ReviewServer) -> Client:
    return Client(server.url)


def test_a_review_from_the_first_clip_to_the_last_and_on_after_a_restart(
    client: Client, review: Review, server: ReviewServer
) -> None:
    status, page, headers = client.send("GET", "/")
    assert status == 200 and b"<html" in page
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert b"http://" not in page and b"https://" not in page, "the page fetches nothing from elsewhere"
    status, state = client.json("GET", "/api/state?annotator=Ann%20%20B")
    assert (status, state["annotator"], state["open"], state["done"]) == (200, "Ann B", 4, [])
    seen = []
    for number in range(3):
        item = state["next"]
        seen.append(item["clip"])
        wanted = 4 if item["kind"] == "image" else 7
        assert [v["key"] for v in item["views"]] == [v.key for v in views_of(item["kind"])] and len(
            item["views"]
        ) == wanted
        views = {v["key"]: number != 1 for v in item["views"]}
        status, state = client.json(
            "POST", "/api/answer", {"annotator": "Ann B", "clip": item["clip"], "views": views, "seconds": 2.5}
        )
        assert status == 200
    assert (state["done"], state["passed"], state["failed"], state["open"]) == (seen, 2, 1, 1)
    # Back to the first, and judged otherwise; another process then reads the same.
    status, item = client.json("GET", f"/api/clip?annotator=Ann%20B&clip={seen[0]}")
    assert set(item["answer"]["views"].values()) == {True}
    other = dict.fromkeys(item["answer"]["views"], False)
    assert client.json("POST", "/api/answer", {"annotator": "Ann B", "clip": seen[0], "views": other})[0] == 200
    server.close()
    again = ReviewServer(Review(review.data, review.clips.values(), review.rule))
    again.start()
    try:
        second = Client(again.url)
        state = second.json("GET", "/api/state?annotator=Ann%20B")[1]
        assert (state["passed"], state["failed"], state["done"]) == (1, 2, seen)
        last = state["next"]["clip"]
        state = second.json("POST", "/api/answer", {"annotator": "Ann B", "clip": last, "skipped": "broken"})[1]
        assert state["next"] is None and state["open"] == 1
        # A clip that one person skipped is open to others, and is the only one that another is asked about.
        assert second.json("GET", "/api/state?annotator=Ben")[1]["next"]["clip"] == last
    finally:
        again.close()
    assert has_review(review.data)


def test_files_come_whole_and_by_parts(client: Client, review: Review) -> None:
    video = next(c for c in review.clips.values() if c.kind == "video")
    url = f"/media/{video.id}"
    content = bytes(range(100))
    status, got, headers = client.send("GET", url)
    assert (status, got, headers["Content-Type"], headers["Accept-Ranges"]) == (200, content, "video/mp4", "bytes")
    for asked, part in (("bytes=0-9", content[:10]), ("bytes=90-", content[90:]), ("bytes=-5", content[95:]),
                        ("bytes=98-500", content[98:])):  # fmt: skip
        status, got, headers = client.send("GET", url, headers={"Range": asked})
        assert (status, got) == (206, part)
        assert headers["Content-Range"].endswith("/100")
    status, got, headers = client.send("HEAD", url)
    assert (status, got, headers["Content-Length"]) == (200, b"", "100")
    for asked in ("bytes=100-", "bytes=9-3", "bytes=-0", "pages=1-2", "bytes=0-1,5-6"):
        assert client.send("GET", url, headers={"Range": asked})[0] == 416
    (review.data / str(video.path)).unlink()
    status, error = client.json("GET", url)
    assert status == 404 and "is gone" in error["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/media/../secret.txt", "/media/%2e%2e/secret.txt", "/media/..%2fsecret.txt", "/media/store/0.mp4",
        "/media//etc/passwd", "/media/", "/secret.txt", "/review/answers.jsonl", "/media/..%5csecret.txt",
        "/media/%00", "//secret.txt",
    ],
)  # fmt: skip
def test_no_path_leads_to_a_file(client: Client, path: str) -> None:
    status, content, _ = client.send("GET", path)
    assert status == 404
    assert b"secret" not in content
    assert json.loads(content)["error"].endswith(".")


def test_bad_requests_are_one_sentence_and_record_nothing(client: Client, review: Review) -> None:
    clip = next(c for c in review.clips.values() if c.kind == "video").id
    whole = {"annotator": "ann", "clip": clip, "views": GOOD}
    image = next(c for c in review.clips.values() if c.kind == "image").id
    for body, status, said in (
        (b"not json", 400, "not JSON"),
        (b"[" * 50000, 400, "not JSON"),
        ([1], 400, "not a JSON object"),
        ({**whole, "annotator": ""}, 400, "1 to 40"),
        ({**whole, "annotator": "x" * 41}, 400, "1 to 40"),
        ({**whole, "annotator": "a\u0000"}, 400, "printable"),
        ({**whole, "annotator": 3}, 400, "annotator"),
        ({**whole, "views": {}}, 400, "judges colour"),
        ({**whole, "views": {**GOOD, "taste": True}}, 400, "judges colour"),
        ({**whole, "views": {**GOOD, "blur": "yes"}}, 400, "true and false"),
        ({**whole, "views": [True]}, 400, "object"),
        ({**whole, "skipped": "dark"}, 400, "not both"),
        ({**whole, "views": None, "skipped": 1}, 400, "text"),
        ({**whole, "views": None, "skipped": "x" * 300}, 400, "skipped"),
        ({**whole, "seconds": -1}, 400, "seconds"),
        ({**whole, "seconds": True}, 400, "seconds"),
        (b'{"annotator": "a", "clip": "b", "seconds": NaN}', 404, "under review"),
        ({**whole, "clip": image}, 400, "judges colour, lighting, emphasis, layout,"),
        ({**whole, "clip": "../secret.txt"}, 404, "under review"),
        ({**whole, "clip": None}, 404, "under review"),
        ({**whole, "path": "/etc/passwd"}, 400, "no field path"),
        (b"x" * (LARGEST + 1), 413, "at most"),
    ):
        got, error = client.json("POST", "/api/answer", body)
        assert (got, said in error["error"]) == (status, True), (body, error)
    for path, status in (("/api/state", 400), ("/api/state?annotator=", 400), ("/api/clip?annotator=a", 404),
                         ("/api/nothing", 404), ("/api/answer", 404)):  # fmt: skip
        got, error = client.json("GET", path)
        assert got == status and error["error"]
    assert client.json("POST", "/", {})[0] == 404
    assert client.json("POST", "/api/answer", whole, **{"Content-Type": "text/plain"})[0] == 415
    got, error = client.json("PUT", "/api/answer", whole)
    assert got == 501 and "PUT" in error["error"]
    assert not has_review(review.data)


def test_other_sites_cannot_talk_to_it(client: Client, review: Review) -> None:
    body = {"annotator": "ann", "clip": next(iter(review.clips)), "views": GOOD}
    assert client.json("GET", "/api/state?annotator=a", Host="evil.example:8765")[0] == 403
    assert client.json("POST", "/api/answer", body, Origin="http://evil.example")[0] == 403
    assert client.json("GET", "/api/state?annotator=a", Host="localhost:8765")[0] == 200
    assert client.json("GET", "/api/state?annotator=a", Origin=f"http://{client.host}")[0] == 200
    assert not has_review(review.data)


def test_a_body_without_a_length_and_a_line_that_is_no_request(client: Client) -> None:
    host, port = client.host.split(":")
    for raw, status in (
        (b"POST /api/answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\r\n", b"411"),
        (b"POST /api/answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", b"411"),
        (b"rubbish\r\n\r\n", b"400"),
    ):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(raw)
            reply = b""
            while part := connection.recv(4096):
                reply += part
        assert status in reply.split(b"\r\n")[0] or status == b"400", reply
        assert b'"error"' in reply


def test_a_port_that_is_taken_is_said(client: Client, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(UserError, match="--port"):
        ReviewServer(Review(elsewhere, [make_clip(1, elsewhere)], Rule()), int(client.host.split(":")[1]))

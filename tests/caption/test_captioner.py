"""Captions of a data folder: what was measured, a model behind a real address that also misbehaves, going on."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.caption.captioner import (
    Captioned,
    Captioner,
    Declined,
    Item,
    TryLater,
    caption_clips,
    place_in_file,
)
from openhunyuan.caption.measured import Measured, colour_name, measured_caption
from openhunyuan.caption.schema import Caption
from openhunyuan.caption.tags import caption_tags
from openhunyuan.caption.vision import ANSWER_SCHEMA, Endpoint, Vision, read_caption
from openhunyuan.cli.main import main
from openhunyuan.curate.measures.motion import Motion
from openhunyuan.curate.measures.quality import Quality
from openhunyuan.curate.run import Plan, curate, read_clips
from openhunyuan.curate.stage import Outcome, Stage
from openhunyuan.curate.tables import Table, alone
from tests.curate.films import encode, save, shot
from tests.infer.rewrite_server import hang, raw, says, serving, status

GOOD = {
    "short": "A square moves.",
    "dense": "A bright square moves to the right over waves.",
    "background": "waves",
    "style": "",
    "shot_type": "wide shot",
    "lighting": "",
    "atmosphere": "",
}


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captions")
    save(folder / "raw/a.mp4", shot(1, 24), shot(2, 20), shot(3, 20))
    curate(folder / "raw", folder / "data", Plan(measures=(Motion(), Quality())))
    return folder / "data"


@pytest.fixture
def data(curated: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(curated, tmp_path / "data"))


def vision(url: str, **options: float) -> Vision:
    endpoint = Endpoint(url, "m", timeout=options.get("timeout", 30.0), retries=0, backoff=0.01)
    return Vision(model="m", frames=3, side=64, window=options.get("window")).at(endpoint)


class Scripted(Captioner):
    """Does what a function says, by the number of the call."""

    name: ClassVar[str] = "scripted"
    label: str = "one"
    calls: ClassVar[list[str]] = []
    script: ClassVar[Callable[[int], None]] = lambda number: None

    def caption(self, item: Item) -> Captioned:
        type(self).calls.append(item.clip.id)
        type(self).script(len(self.calls) - 1)
        text = f"clip {self.label}"
        return Captioned(Caption(short=text, dense=text), text)


@pytest.fixture(autouse=True)
def fresh_script() -> None:
    Scripted.calls, Scripted.script = [], lambda number: None


def test_measured_captions_say_what_was_measured_and_nothing_else(data: Path) -> None:
    report = caption_clips(data, Measured())
    assert (report.written, report.declined, report.failed) == (3, 0, 0)
    for clip in read_clips(data):
        (caption,) = clip.captions
        assert caption.captioner == "measured"
        fields = Caption(**caption.fields)
        assert "video" in caption.text
        assert fields.background == fields.shot_type == fields.style == ""


def test_a_measured_caption_follows_the_scores() -> None:
    night = {"quality.brightness": 20.0, "motion.speed": 30.0, "motion.camera_speed": 9.0, "motion.subject_speed": 30.0}
    caption = measured_caption(night, [10, 10, 10, 0.7, 220, 20, 20, 0.3])
    assert caption.dense == "a dark video in black and red, with fast motion"
    assert caption.camera is None
    assert "motion" not in measured_caption({"motion.speed": 30.0}, [5, 5, 5, 1.0]).dense  # in pixels, or of vectors
    still = measured_caption({**night, "motion.camera_speed": 0.0, "quality.brightness": 200.0}, [250, 250, 250, 1.0])
    assert still.short == "a bright video in white"
    assert still.camera is None and "camera" not in still.dense  # that is for the table `camera` to say
    with pytest.raises(UserError):
        measured_caption({}, [])


def test_a_measured_caption_has_the_shot_scale_of_what_the_crop_left(data: Path) -> None:
    clip = read_clips(data)[0]
    scores = {**clip.scores, "shot_scale.head_low": 28.0, "shot_scale.head_high": 30.0}
    said = Measured().caption(Item(clip.model_copy(update={"height": 100}), Path(), scores)).caption
    assert said.shot_type == "medium shot"
    cropped = clip.model_copy(update={"height": 50, "crop": (0, 20, 64, 70)})
    assert Measured().caption(Item(cropped, Path(), scores)).caption.shot_type == "medium close-up"


@pytest.mark.parametrize(
    "rgb, name",
    [
        ((232, 24, 32), "red"), ((255, 138, 0), "orange"), ((255, 232, 24), "yellow"), ((24, 188, 48), "green"),
        ((16, 224, 236), "cyan"), ((32, 80, 248), "blue"), ((168, 36, 216), "purple"), ((250, 250, 250), "white"),
        ((106, 106, 106), "gray"), ((20, 28, 104), "dark blue"), ((5, 5, 5), "black"), ((120, 70, 20), "brown"),
    ],
)  # fmt: skip
def test_colours_have_plain_names(rgb: tuple[int, int, int], name: str) -> None:
    assert colour_name(*rgb) == name


def test_a_second_run_asks_nothing_and_another_captioner_adds(data: Path) -> None:
    caption_clips(data, Scripted())
    assert caption_clips(data, Scripted()).known == 3
    assert len(Scripted.calls) == 3
    caption_clips(data, Scripted(label="two"))
    assert [[c.text for c in clip.captions] for clip in read_clips(data)] == [["clip one", "clip two"]] * 3


def label_cameras(data: Path, move: str = "zoom in", confidence: float = 0.8) -> None:
    """A table `camera` that says this of every clip."""
    row = {"first": [0], "last": [24], "move": [move], "confidence": [confidence]}
    Table(data, Cameras()).add(Outcome(clip.id, (row,)) for clip in read_clips(data))


def test_labels_of_uneven_frames_are_brought_to_the_frames_of_the_file(tmp_path: Path) -> None:
    """One shot in frames of 20 ms, one in frames of 100 ms: the files of both have the source's rate."""
    times = [*range(0, 800, 20), *range(800, 4800, 100)]
    encode(tmp_path / "raw/a.mp4", np.concatenate([shot(1, 40), shot(2, 40)]), pts=times)
    data = tmp_path / "data"
    quick, slow = curate(tmp_path / "raw", data, Plan(measures=(Motion(), Quality()))).clips
    assert (quick.num_frames, slow.num_frames) == (14, 70), "of 40 each"
    halves = {"first": [0, 20], "last": [20, 40], "move": ["zoom in", "static"], "confidence": [0.95, 0.95]}
    Table(data, Cameras()).add(Outcome(clip.id, (halves,)) for clip in (quick, slow))
    caption_clips(data, Scripted())
    for clip, middle in zip(read_clips(data), (7, 35), strict=True):
        evidence = clip.captions[0].camera
        assert evidence and [(label.first, label.last) for label in evidence.labels] == [
            (0, middle),
            (middle, clip.num_frames),
        ]
    later = slow.model_copy(update={"first_frame": 6, "file_frames": 60})
    assert place_in_file(later) == (10, pytest.approx(70 / 40, abs=0.02))


def texts(data: Path) -> list[list[str]]:
    return [[caption.text for caption in clip.captions] for clip in read_clips(data)]


def test_the_newest_captioner_is_the_one_that_captioned_last_whatever_file_times_say(data: Path) -> None:
    label_cameras(data)
    for label in ("one", "two"):
        caption_clips(data, Scripted(label=label))
    wanted = [["clip one", "clip two"]] * 3
    assert caption_clips(data, Scripted(label="one"), camera_gate=0.5).written == 0  # its rows are written anew
    assert read_clips(data)[0].camera == "zoom in"
    assert texts(data) == wanted
    for path in data.glob(f"tables/caption/{Scripted(label='one').key}/*.parquet"):
        os.utime(path, (4e9, 4e9))
    curate(Path(read_clips(data)[0].source).parent, data, Plan(measures=(Motion(), Quality())))
    assert texts(data) == wanted

    def script(number: int) -> None:
        if number == 0:
            raise Declined("I will not")

    Scripted.calls, Scripted.script = [], script
    for label in ("three", "four"):
        caption_clips(data, Scripted(label=label))
    caption_clips(data, Scripted(label="three"), retry=True)  # captions the one clip that it had declined
    assert [words[-2:] for words in texts(data)] == [["clip four", "clip three"]] * 3


def test_captions_from_before_the_order_was_kept_are_ordered_by_file_times_once(data: Path) -> None:
    for number, label in enumerate(("b", "a")):
        caption_clips(data, Scripted(label=label))
        for path in data.glob(f"tables/caption/{Scripted(label=label).key}/*.parquet"):
            os.utime(path, (1000 + number, 1000 + number))
    (data / "tables/caption/order.json").unlink()
    raw = Path(read_clips(data)[0].source).parent
    for _ in range(2):
        curate(raw, data, Plan(measures=(Motion(), Quality())))
        assert texts(data) == [["clip b", "clip a"]] * 3
        for path in data.glob("tables/caption/*/*.parquet"):
            os.utime(path, (2000, 2000))


def test_captioning_and_curating_do_not_write_to_one_folder(data: Path) -> None:
    with alone(data), pytest.raises(UserError, match="Another run is writing"):
        caption_clips(data, Scripted())
    refused: list[str] = []

    def script(number: int) -> None:
        with pytest.raises(UserError, match="Another run is writing") as error:
            curate(Path(read_clips(data)[0].source).parent, data, Plan())
        refused.append(str(error.value))

    Scripted.script = script
    assert caption_clips(data, Scripted()).written == len(refused) == 3


def test_captions_survive_the_next_curation(data: Path) -> None:
    caption_clips(data, Scripted())
    curate(Path(read_clips(data)[0].source).parent, data, Plan(measures=(Motion(), Quality())))
    assert all(clip.captions for clip in read_clips(data))


def test_refusals_and_failures_are_kept_counted_and_asked_again_only_on_demand(data: Path) -> None:
    def script(number: int) -> None:
        if number == 0:
            raise Declined("I will not")
        if number == 1:
            raise UserError("the file is odd")

    Scripted.script = script
    report = caption_clips(data, Scripted())
    assert (report.written, report.declined, report.failed) == (1, 1, 1)
    assert dict(report.reasons) == {"I will not": 1, "the file is odd": 1}
    assert [len(clip.captions) for clip in read_clips(data)] == [0, 0, 1]
    assert caption_clips(data, Scripted()).known == 1
    assert len(Scripted.calls) == 3
    Scripted.script = lambda number: None
    assert caption_clips(data, Scripted(), retry=True).written == 2
    assert all(clip.captions for clip in read_clips(data))


def test_a_server_that_is_down_is_no_clips_fault(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openhunyuan.caption.captioner.GIVE_UP", 2)

    def script(number: int) -> None:
        raise TryLater("The captioner cannot be reached.")

    Scripted.script = script
    with pytest.raises(UserError, match="cannot be reached"):
        caption_clips(data, Scripted())
    assert len(Scripted.calls) == 2
    Scripted.script = lambda number: None
    assert caption_clips(data, Scripted()).written == 3


def test_a_model_sees_frames_and_answers_in_the_form(data: Path) -> None:
    with serving(says(GOOD)) as server:
        report = caption_clips(data, vision(server.url), parallel=2)
    assert report.written == 3
    content = server.calls[0]["messages"][1]["content"]
    assert [part["type"] for part in content] == ["text", "image_url", "image_url", "image_url"]
    assert content[1]["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")
    caption = read_clips(data)[0].captions[0]
    assert (caption.captioner, caption.text) == ("vision", GOOD["dense"])
    assert caption.fields["shot_type"] == "wide shot"


def test_an_answer_out_of_form_is_sent_back_once(data: Path) -> None:
    with serving(says("Sure! Here it is."), says({**GOOD, "mood": "calm"}), says(GOOD)) as server:
        report = caption_clips(data, vision(server.url))
    assert (report.written, report.failed) == (2, 1)
    assert "no complete JSON object" in server.calls[1]["messages"][-1]["content"]
    assert "twice not in the form" in report.reasons[0][0]
    assert "mood" in report.reasons[0][0]


def test_refusals_of_both_kinds_are_recorded(data: Path) -> None:
    with serving(says("", refusal="not this"), says("I'm sorry, but I cannot help."), says(GOOD)) as server:
        report = caption_clips(data, vision(server.url))
    assert (report.written, report.declined) == (1, 2)


@pytest.mark.parametrize(
    "reply, said",
    [
        (status(400, "context length exceeded"), "answered 400: 'context length exceeded'"),
        (status(422), "answered 422"),
        (says('{"short": ', finish_reason="length"), "length limit"),
    ],
    ids=["400", "422", "length"],
)
def test_a_request_that_fails_is_recorded_for_its_clip(
    data: Path, reply: Callable, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openhunyuan.caption.captioner.GIVE_UP", 2)
    with serving(reply, reply, says(GOOD)) as server:
        report = caption_clips(data, vision(server.url))
        assert (report.written, report.declined, report.failed) == (1, 0, 2)
        assert said in report.reasons[0][0]
        assert caption_clips(data, vision(server.url)).written == 0
        assert len(server.calls) == 3  # not asked again
        assert caption_clips(data, vision(server.url), retry=True).written == 2


def test_a_content_filter_that_answers_400_refuses(data: Path) -> None:
    body = json.dumps({"error": {"message": "filtered", "code": "content_filter"}}).encode()
    with serving(raw(body, 400), says(GOOD)) as server:
        report = caption_clips(data, vision(server.url))
    assert (report.written, report.declined, report.failed) == (2, 1, 0)


@pytest.mark.parametrize("code", [401, 402, 403, 404, 408, 429])
def test_what_every_request_would_be_told_is_no_clips_fault(
    data: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openhunyuan.caption.captioner.GIVE_UP", 2)
    with serving(status(code), status(code), says(GOOD)) as server:
        with pytest.raises(UserError, match=f"answered {code}"):
            caption_clips(data, vision(server.url))
        assert caption_clips(data, vision(server.url)).written == 3


def test_clips_whose_caption_is_another_captioners_are_counted(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def script(number: int) -> None:
        if number < 2:
            raise Declined("I will not")

    Scripted.script = script
    report = caption_clips(data, Scripted())
    assert (report.kept, report.others, report.none) == (3, (), 2)
    with serving(status(400, "too long"), says(GOOD)) as server:
        args = ["--captioner", "endpoint", "--endpoint", server.url, "--caption-model", "m", "--parallel", "1"]
        assert main(["caption", str(data), *args]) == 0
    assert "1 of 3 clips have no caption" in (said := capsys.readouterr().err)
    assert "another captioner" not in said
    report = caption_clips(data, Measured())
    assert (report.written, report.others, report.none) == (3, (), 0)
    caption_clips(data, Scripted(label="two"))
    assert main(["caption", str(data)]) == 0  # measured captioned before, and is not the newest
    said = " ".join(capsys.readouterr().err.split())
    assert f"3 of 3 clips have their caption by another captioner: scripted@{Scripted(label='two').key}" in said


@pytest.mark.parametrize("reply", [status(500), hang(1.0), raw(b"<html>")], ids=["500", "hang", "html"])
def test_a_broken_server_ends_the_run_in_one_sentence(
    data: Path, reply: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openhunyuan.caption.captioner.GIVE_UP", 2)
    with serving(reply) as server, pytest.raises(UserError, match="The captioner at http"):
        caption_clips(data, vision(server.url, timeout=0.3))


def test_an_answer_names_no_camera() -> None:
    assert read_caption(json.dumps({**GOOD, "camera": "pan left"})).camera is None
    with pytest.raises(UserError):
        read_caption('{"short": "x", "dense": " "}')


def test_a_server_of_vllm_is_asked_to_hold_the_model_to_the_form(data: Path) -> None:
    with serving(says(GOOD)) as server:
        seer = Endpoint(server.url, "m", retries=0, structured=True)
        caption_clips(data, Vision(model="m", frames=1, structured=True).at(seer))
    (form,) = [call["response_format"] for call in server.calls[:1]]
    assert (form["type"], form["json_schema"]["schema"]) == ("json_schema", ANSWER_SCHEMA)
    read_caption(json.dumps(dict.fromkeys(ANSWER_SCHEMA["properties"], "a")))


def test_long_clips_are_captioned_in_windows(data: Path) -> None:
    with serving(says(GOOD), says("", refusal="not this"), says(GOOD)) as server:
        report = caption_clips(data, vision(server.url, window=0.4))  # clips of 24, 20 and 20 frames, 24 a second
    assert (report.written, report.declined) == (3, 0)
    assert len(server.calls) == 2 + 2 + 2
    assert "refused" in report.reasons[0][0]
    windows = [[c.window for c in clip.captions] for clip in read_clips(data)]
    assert windows == [[(0, 12)], [(0, 10), (10, 20)], [(0, 10), (10, 20)]]  # what was refused has no caption
    assert "3 frames of a clip of 0.5 seconds" in server.calls[0]["messages"][1]["content"][0]["text"]
    first, second = (server.calls[i]["messages"][1]["content"][1]["image_url"]["url"] for i in (0, 1))
    assert first != second
    with serving(says(GOOD)) as server:
        assert caption_clips(data, vision(server.url, window=0.4), retry=True).written == 1
        assert caption_clips(data, vision(server.url, window=9.0)).written == 3
    assert read_clips(data)[0].captions[-1].window is None


class Cameras(Stage):
    """Stands in for the measure that classifies camera moves."""

    name: ClassVar[str] = "camera"
    model: str = "older"


class Own(Captioner):
    """Has a word of its own for the camera."""

    name: ClassVar[str] = "own"

    def caption(self, item: Item) -> Captioned:
        return Captioned(Caption(short="a", dense="a", camera="pan up"), "a")


def test_a_camera_label_enters_captions_when_it_is_sure_enough_and_when_it_is_measured_later(data: Path) -> None:
    caption_clips(data, Scripted())
    clips = read_clips(data)
    rows = {
        clips[0].id: {"first": [0], "last": [24], "move": ["pan left"], "confidence": [0.95]},
        clips[1].id: {"first": [0, 10], "last": [10, 20], "move": ["static", "none"], "confidence": [0.99, 0.9]},
        clips[2].id: {"first": [0], "last": [20], "move": ["zoom in"], "confidence": [0.8]},
    }
    Table(data, Cameras()).add(Outcome(key, (row,)) for key, row in rows.items())
    assert caption_clips(data, Scripted()).known == 3
    assert len(Scripted.calls) == 3  # nothing was asked again
    assert [clip.camera for clip in read_clips(data)] == ["pan left", None, None]
    assert read_clips(data)[0].captions[0].fields["camera"] == "pan left"
    caption_clips(data, Scripted(), camera_gate=0.75)
    assert [clip.camera for clip in read_clips(data)] == ["pan left", None, "zoom in"]
    with serving(says(GOOD)) as server:
        caption_clips(data, vision(server.url, window=0.4))
    windows = read_clips(data)[1].captions[-2:]
    assert [c.fields["camera"] for c in windows] == ["static", None]
    found = [c.camera for c in windows if c.camera]
    assert [[label.move for label in evidence.labels] for evidence in found] == [["static"], []]
    assert {(evidence.gate, evidence.measure) for evidence in found} == {(0.9, f"camera@{Cameras().key}")}
    parts = {*data.glob("tables/caption/*/*.parquet")}
    caption_clips(data, Scripted())
    assert {*data.glob("tables/caption/*/*.parquet")} == parts  # what is up to date is not written again


def test_a_label_goes_when_a_newer_measure_names_no_move_and_a_captioners_own_stays(data: Path) -> None:
    label_cameras(data, confidence=0.95)
    caption_clips(data, Scripted())
    assert read_clips(data)[0].camera == "zoom in"
    newer = Cameras(model="newer")
    nothing = {"first": [], "last": [], "move": [], "confidence": [], "seconds": []}
    Table(data, newer).add(Outcome(clip.id, (nothing,)) for clip in read_clips(data))
    run = json.loads((data / "run.json").read_text())
    run["stages"].append({"name": "camera", "key": newer.key})  # as a curation with the newer measure leaves it
    (data / "run.json").write_text(json.dumps(run))
    caption_clips(data, Scripted())
    assert [clip.camera for clip in read_clips(data)] == [None] * 3
    evidence = read_clips(data)[0].captions[0].camera
    assert evidence and (evidence.labels, evidence.measure) == ((), f"camera@{newer.key}")
    caption_clips(data, Own())
    last = read_clips(data)[0].captions[-1]
    assert (last.fields["camera"], last.camera) == ("pan up", None)


def test_tags_are_what_was_measured_and_a_models_own_are_dropped(data: Path) -> None:
    with serving(says({**GOOD, "tags": ["masterpiece", "4k"]})) as server:
        assert caption_clips(data, vision(server.url)).written == 3
    for clip in read_clips(data):
        assert clip.captions[0].fields["tags"] == [*caption_tags(clip, clip.scores)]
        assert clip.captions[0].fields["tags"][:2] == ["square", "below 144p"]
        assert not {"h264", "masterpiece", "4k"} & {*clip.captions[0].fields["tags"]}


def test_captions_from_before_there_were_tags_get_them_without_being_asked_for(data: Path) -> None:
    caption_clips(data, Scripted())
    table = Table(data, Scripted(), "caption")
    tags = [clip.captions[0].fields["tags"] for clip in read_clips(data)]
    for rows in [*table.rows().values()]:
        without = {**json.loads(rows[0]["fields"]), "tags": []}
        table.add([Outcome(rows[0]["key"], ({**rows[0], "fields": json.dumps(without)},))])
    caption_clips(data, Measured())  # another captioner's run is enough
    assert len(Scripted.calls) == 3
    assert all(tags) and [clip.captions[0].fields["tags"] for clip in read_clips(data)] == tags
    parts = {*data.glob("tables/caption/*/*.parquet")}
    caption_clips(data, Measured())
    assert {*data.glob("tables/caption/*/*.parquet")} == parts  # what is up to date is not written again


def test_nothing_to_caption_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no manifest"):
        caption_clips(tmp_path, Measured())

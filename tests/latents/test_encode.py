"""Encoding clips: right frames, right text, nothing encoded twice, deleted, mixed or left out silently."""

import errno
import json
import math
import os
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.base.sizes import VideoSize
from openhunyuan.base.video import write_video
from openhunyuan.caption.camera import gated_camera
from openhunyuan.curate.clip import CameraEvidence, CameraLabel, Clip, ClipCaption, clip_id, to_jsonl
from openhunyuan.latents.buckets import parse_buckets
from openhunyuan.latents.encode import (
    EncodeReport,
    Encoders,
    Networks,
    encode_clips,
    frame_numbers,
    frames_at,
    plan_samples,
    to_pixels,
)
from openhunyuan.latents.shards import (
    INDEX_NAME,
    LatentSample,
    Loader,
    MixEntry,
    ShardDataset,
    ShardWriter,
    check_mix,
    remove_samples,
)
from openhunyuan.latents.store import read_header
from tests.curate.processes import in_a_process, is_alive

SIZE = VideoSize(5, 32, 32)


class MeanVAE:
    """Stands in for the VAE: latents are frame means, so that a test can see which frames were read."""

    calls = 0
    fatal = infinite = 0  # the call that kills the process, the one that gives what cannot be stored
    config = SimpleNamespace(scaling_factor=0.5)

    def encode(self, x: Tensor, tiling: object = None) -> SimpleNamespace:
        self.calls += 1
        if self.calls == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        height, width = x.shape[3] // 8, x.shape[4] // 8
        mean = 2 * x[:, :1, ::4].mean((3, 4), keepdim=True).expand(-1, 16, -1, height, width)
        mean = mean * 1e9 if self.calls == self.infinite else mean
        return SimpleNamespace(mean=mean, logvar=torch.full_like(mean, -2.0))


class LengthText:
    """Stands in for the text encoders: one token a word, padded with garbage that must not be stored."""

    infinite = ""

    def encode(self, prompts: list[str], data_type: str = "video") -> SimpleNamespace:
        self.asked = [*getattr(self, "asked", []), *prompts]
        words = torch.tensor([len(prompt.split()) for prompt in prompts])
        mask = torch.arange(12)[None] < words[:, None]
        states = torch.where(mask[..., None], 1.0, 99.0).expand(-1, -1, 8)
        states = states * torch.tensor([1e9 if text == self.infinite else 1.0 for text in prompts])[:, None, None]
        return SimpleNamespace(states=states, mask=mask, pooled=words[:, None].expand(-1, 6).float())


def encode(clips: list[Clip], folder: Path, output: Path, vae: MeanVAE | None = None, **options: Any) -> EncodeReport:
    encoders = Encoders.of(vae or MeanVAE(), options.pop("text", None) or LengthText(), options.pop("name", "m"))
    sizes = options.pop("sizes", SIZE)
    return encode_clips(clips, folder, output, encoders, sizes, **{"samples_per_shard": 2, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def of_current(folder: Path) -> list[str]:
    index = json.loads((folder / INDEX_NAME).read_text())
    return sorted(s[kind]["file"] for b in index["buckets"] for s in b["shards"] for kind in ("moments", "texts"))


def make_clips(folder: Path, lengths: list[int]) -> list[Clip]:
    clips = []
    for i, length in enumerate(lengths):
        levels = (20 + 30 * i + 10 * np.arange(length)).clip(0, 250).astype(np.uint8)
        frames = np.broadcast_to(levels[:, None, None, None], (length, 32, 48, 3))
        name = clip_id(str(i), 0, length)
        write_video(folder / f"clips/{name}.mp4", frames, 24.0)
        clips.append(
            Clip(
                id=name, source="s.mp4", source_sha256=str(i), start_frame=0, end_frame=length, fps=24.0, height=32,
                width=48, path=f"clips/{name}.mp4",
                captions=(ClipCaption(captioner="truth", text=" ".join(["word"] * (i + 1))),),
            )
        )  # fmt: skip
    return clips


def test_samples_hold_the_clip_and_its_caption(tmp_path: Path) -> None:
    clips = make_clips(tmp_path, [5, 7, 9])
    report = encode(clips, tmp_path, tmp_path / "out")
    assert (report.samples, report.written, report.encoded, report.left_out) == (3, 2, 3, ())
    dataset = ShardDataset(tmp_path / "out")
    assert dataset.shapes == [(16, 2, 4, 4)] * 3
    for i, sample in enumerate(dataset.samples):
        assert sample.prompt == clips[i].captions[0].text
        assert sample.states.shape == (i + 1, 8)
        assert (sample.states == 1).all()
        assert sample.metadata["clip"] == clips[i].id
        expected = torch.tensor([20.0 + 30 * i, 60.0 + 30 * i]) / 127.5 - 1
        assert torch.allclose(sample.latents[0, :, 0, 0].float(), expected, atol=0.03)  # scaled by 0.5
        assert sample.logvar is not None
        assert torch.allclose(sample.logvar.float(), torch.tensor(-2.0 + 2 * math.log(0.5)), atol=2e-3)


def test_latents_are_drawn_from_their_distribution_by_seed_sample_and_epoch(tmp_path: Path) -> None:
    encode(make_clips(tmp_path, [5]), tmp_path, tmp_path / "out")
    sample = ShardDataset(tmp_path / "out")[0]
    drawn = sample.drawn(1, 2, 3)
    assert torch.equal(drawn.latents, sample.drawn(1, 2, 3).latents)
    others = [sample.drawn(*key).latents for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0))]
    assert not any(torch.equal(drawn.latents, other) for other in others)
    away = torch.stack([sample.drawn(0, n, 0).latents - sample.latents.float() for n in range(40)])
    assert abs(float(away.mean())) < 0.01
    assert float(away.std()) == pytest.approx(math.exp(-1.0) * 0.5, rel=0.02)
    with pytest.raises(UserError, match="none can be drawn"):
        LatentSample(sample.latents, sample.states, sample.pooled, "modes").drawn(0, 0, 0)
    modes, draws = (Loader(ShardDataset(tmp_path / "out"), 1, draw=draw) for draw in (False, True))
    assert torch.equal(modes.batch(0)["latents"], modes.batch(1)["latents"])
    assert not torch.equal(draws.batch(0)["latents"], draws.batch(1)["latents"])  # two epochs
    assert torch.equal(
        draws.batch(1)["latents"], Loader(ShardDataset(tmp_path / "out"), 1, draw=True).batch(1)["latents"]
    )


def test_a_second_run_encodes_nothing_and_a_changed_caption_its_text_alone(tmp_path: Path) -> None:
    clips, out, vae, text = make_clips(tmp_path, [5] * 6), tmp_path / "out", MeanVAE(), LengthText()
    encode(clips, tmp_path, out, vae, text=text)
    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    again = encode(clips, tmp_path, out, vae, text=text)
    assert (again.written, again.skipped, vae.calls, len(text.asked)) == (0, 3, 6, 6)
    assert files == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    changed = [*clips[:3], clips[3].with_caption(ClipCaption(captioner="better", text="new words")), *clips[4:]]
    report = encode(changed, tmp_path, out, vae, text=text)
    assert (report.written, report.skipped, report.encoded) == (1, 2, 0)
    assert text.asked[6:] == ["new words"]
    assert ShardDataset(out)[3].prompt == "new words"
    assert set(files) < set(out.rglob("*"))  # nothing is deleted, and the dataset before can still be read
    before = json.loads(files[out / INDEX_NAME])["fingerprint"]
    assert ShardDataset(out, before)[3].prompt == clips[3].captions[0].text
    encode(clips, tmp_path, out, vae, text=text)
    assert (vae.calls, len(text.asked)) == (6, 7)
    assert encode(clips, tmp_path, out, vae, name="other").encoded == 6


def test_a_clip_in_the_middle_moves_samples_between_files_and_is_the_only_one_encoded(tmp_path: Path) -> None:
    clips, out, vae, text = make_clips(tmp_path, [5] * 5), tmp_path / "out", MeanVAE(), LengthText()
    encode([*clips[:1], *clips[2:]], tmp_path, out, vae, text=text)
    report = encode(clips, tmp_path, out, vae, text=text)
    assert (report.encoded, vae.calls, len(text.asked)) == (1, 5, 5)
    fresh = tmp_path / "fresh"
    encode(clips, tmp_path, fresh)
    assert of_current(out) == of_current(fresh)
    assert all((out / name).read_bytes() == (fresh / name).read_bytes() for name in of_current(out))


def test_a_structured_caption_travels_with_its_sample(tmp_path: Path) -> None:
    clips, out = make_clips(tmp_path, [5] * 2), tmp_path / "out"
    said = ClipCaption(captioner="truth", text="a", fields={"short": "a", "dense": "a b"})
    clips[0] = clips[0].with_caption(said)
    encode(clips, tmp_path, out)
    assert ShardDataset(out)[0].metadata["caption"] == {"short": "a", "dense": "a b"}
    assert "caption" not in ShardDataset(out)[1].metadata
    other = [clips[0].with_caption(said.model_copy(update={"fields": {"short": "a", "dense": "c"}})), clips[1]]
    assert encode(other, tmp_path, out).written == 1


def test_a_run_that_died_goes_on_where_it_was(tmp_path: Path) -> None:
    clips, out = make_clips(tmp_path, [5] * 4), tmp_path / "out"
    encode(clips, tmp_path, out)
    whole = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    (out / INDEX_NAME).unlink()
    shard = sorted(out.glob("*/moments-*"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    vae = MeanVAE()
    encode(clips, tmp_path, out, vae)
    assert vae.calls == 2
    assert whole == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_parts_and_processes_give_the_same_files(tmp_path: Path) -> None:
    clips, whole = make_clips(tmp_path, [5] * 6), tmp_path / "whole"
    encode(clips, tmp_path, whole)
    parts = tmp_path / "parts"
    first = encode(clips, tmp_path, parts, part=(1, 2))
    assert (first.written, first.missing) == (2, 1)
    with pytest.raises(UserError, match="no latent dataset"):
        ShardDataset(parts)
    assert encode(clips, tmp_path, parts, part=(2, 2)).missing == 0
    many = tmp_path / "many"
    encoders = Encoders(load_stand_ins, "m", "m", "m")
    done = []
    options = {"samples_per_shard": 2, "workers": 2, "on_sample": lambda n, of: done.append((n, of))}
    encode_clips(clips, tmp_path, many, encoders, SIZE, **options)
    assert done[-1] == (6, 6)
    for name in (*of_current(whole), INDEX_NAME):
        assert (whole / name).read_bytes() == (parts / name).read_bytes() == (many / name).read_bytes()


def test_a_killed_run_keeps_every_sample_that_it_finished(tmp_path: Path) -> None:
    clips, out = make_clips(tmp_path, [5] * 10), tmp_path / "out"
    whole = tmp_path / "whole"
    encode(clips, tmp_path, whole, samples_per_shard=256)
    (tmp_path / "manifest.jsonl").write_text(to_jsonl(clips))
    died = in_a_process(
        "import sys; from tests.latents.test_encode import *\n"
        "from openhunyuan.curate.clip import read_manifest\n"
        "folder = Path(sys.argv[1]); vae = MeanVAE(); vae.fatal = 7\n"
        "encode(read_manifest(folder / 'manifest.jsonl'), folder, folder / 'out', vae, samples_per_shard=256)",
        tmp_path,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(list(out.glob("*/moments-part-*"))) == 6 and not (out / INDEX_NAME).exists()
    vae, text, done = MeanVAE(), LengthText(), []
    report = encode(clips, tmp_path, out, vae, text=text, samples_per_shard=256, on_sample=lambda n, _: done.append(n))
    assert (report.encoded, vae.calls, getattr(text, "asked", [])) == (4, 4, [])
    assert done == [0, 6, 7, 8, 9, 10]
    assert contents(out) == contents(whole)


@pytest.mark.slow
def test_a_killed_run_of_several_processes_leaves_none_behind(tmp_path: Path) -> None:
    clips, out = make_clips(tmp_path, [5] * 10), tmp_path / "out"
    (tmp_path / "manifest.jsonl").write_text(to_jsonl(clips))
    died = in_a_process(
        "import sys; from functools import partial; from tests.latents.test_encode import *\n"
        "from openhunyuan.curate.clip import read_manifest\n"
        "folder = Path(sys.argv[1]); clips = read_manifest(folder / 'manifest.jsonl')\n"
        "if __name__ == '__main__':\n"
        "    encoders = Encoders(partial(deadly, folder), 'm', 'm', 'm')\n"
        "    encode_clips(clips, folder, folder / 'out', encoders, SIZE, workers=2)",
        tmp_path,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    workers = [int(path.suffix[1:]) for path in tmp_path.glob("worker.*")]
    until = time.monotonic() + 60
    while any(map(is_alive, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert workers and not any(map(is_alive, workers))
    kept = len(list(out.glob("*/moments-part-*")))
    assert kept >= 3
    assert encode(clips, tmp_path, out).encoded == 10 - kept


@pytest.mark.slow
def test_a_process_that_dies_is_one_sentence(tmp_path: Path) -> None:
    clips = make_clips(tmp_path, [5] * 2)
    encoders = Encoders(die, "m", "m", "m")
    with pytest.raises(UserError, match=r"Workers cannot start: 3 died at once \(exit code 9\)"):
        encode_clips(clips, tmp_path, tmp_path / "out", encoders, SIZE, workers=1)
    for workers in (0, 1):
        with pytest.raises(UserError, match="model is gone"):
            encode_clips(clips, tmp_path, tmp_path / "out", Encoders(refuse, "m", "m", "m"), SIZE, workers=workers)


def load_stand_ins(_number: int) -> Networks:
    return Networks(MeanVAE(), LengthText())


def die(_number: int) -> Networks:
    os._exit(9)


def refuse(_number: int) -> Networks:
    raise UserError("The folder of the model is gone.")


class Poisoned(MeanVAE):
    """Dies of the clip that begins with a grey of 50, as a codec may."""

    def encode(self, x: Tensor, tiling: object = None) -> SimpleNamespace:
        if abs(float(x[:, :, 0].mean() + 1) * 127.5 - 50) < 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(x, tiling)


def load_poisoned(folder: Path, number: int) -> Networks:
    (folder / f"began.{os.getpid()}.{number}").touch()
    return Networks(Poisoned(), LengthText())


@pytest.mark.slow
def test_a_clip_that_kills_its_process_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    clips, out = make_clips(tmp_path, [5] * 4), tmp_path / "out"
    encoders = Encoders(partial(load_poisoned, tmp_path), "m", "m", "m")
    report = encode_clips(clips, tmp_path, out, encoders, SIZE, samples_per_shard=2, workers=1)
    assert report.failed == ((clips[1].id, "cannot be encoded: the process that read it died twice"),)
    assert (report.samples, report.encoded, len(ShardDataset(out))) == (3, 3, 3)
    assert [path.suffix for path in tmp_path.glob("began.*")] == [".0"] * 3  # two died, and the third had their number
    assert encode(clips, tmp_path, out).encoded == 1


class ParentKiller(MeanVAE):
    """Kills the process that started this one."""

    def encode(self, x: Tensor, tiling: object = None) -> SimpleNamespace:
        if self.calls == 3:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        return super().encode(x, tiling)


def deadly(folder: Path, _number: int) -> Networks:
    (folder / f"worker.{os.getpid()}").touch()
    return Networks(ParentKiller(), LengthText())


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_clip_that_cannot_be_read_is_left_out_and_tried_again(tmp_path: Path, workers: int) -> None:
    clips, out = make_clips(tmp_path, [5] * 7), tmp_path / "out"
    files = [tmp_path / str(clip.path) for clip in clips]
    good = [file.read_bytes() for file in files]
    files[0].write_bytes(good[0][: len(good[0]) // 2])
    files[1].write_bytes(b"")
    files[3].unlink()
    encoders = Encoders(load_stand_ins, "m", "m", "m")
    options: dict[str, Any] = {"samples_per_shard": 2, "workers": workers}
    report = encode_clips(clips, tmp_path, out, encoders, SIZE, **options)
    assert (report.samples, report.encoded, report.missing) == (4, 4, 0)
    assert [name for name, _ in report.failed] == [clips[i].id for i in (0, 1, 3)]
    assert report.failed[2][1] == f"cannot be read: The video {clips[3].path} does not exist."
    index = json.loads((out / INDEX_NAME).read_text())
    assert index["left_out"] == [list(item) for item in report.left_out] and len(index["left_out"]) == 3
    left = [clips[i].id for i in (2, 4, 5, 6)]
    assert [sample.metadata["clip"] for sample in ShardDataset(out).samples] == left
    before = contents(out)
    again = encode_clips(clips, tmp_path, out, encoders, SIZE, **options)
    assert (again.samples, again.encoded, again.written, again.failed) == (4, 0, 0, report.failed)
    assert contents(out) == before
    for file, content in zip(files, good, strict=True):
        file.write_bytes(content)
    mended = encode_clips(clips, tmp_path, out, encoders, SIZE, **options)
    assert (mended.samples, mended.encoded, mended.left_out) == (7, 3, ())
    fresh = tmp_path / "fresh"
    encode(clips, tmp_path, fresh)
    assert of_current(out) == of_current(fresh)
    assert all((out / name).read_bytes() == (fresh / name).read_bytes() for name in (*of_current(out), INDEX_NAME))


def test_parts_know_what_other_parts_left_out(tmp_path: Path) -> None:
    clips, out = make_clips(tmp_path, [5] * 4), tmp_path / "out"
    (tmp_path / str(clips[0].path)).unlink()
    assert encode(clips, tmp_path, out, part=(1, 2)).missing == 1
    report = encode(clips, tmp_path, out, part=(2, 2))
    assert (report.samples, report.missing, report.failed[0][0]) == (3, 0, clips[0].id)
    assert len(ShardDataset(out)) == 3
    assert remove_samples(out, lambda about: about.get("clip") == clips[0].id) == 0
    assert not any(clips[0].id.encode() in path.read_bytes() for path in out.rglob("*") if path.is_file())


def test_values_beyond_half_precision_cost_the_sample_and_not_the_run(tmp_path: Path) -> None:
    clips, out = make_clips(tmp_path, [5] * 3), tmp_path / "out"
    vae, text = MeanVAE(), LengthText()
    vae.infinite, text.infinite = 2, clips[2].captions[0].text
    report = encode(clips, tmp_path, out, vae, text=text)
    assert report.samples == 1
    reason = "cannot be stored: its {} is not finite in half precision."
    assert report.failed == ((clips[1].id, reason.format("mean")), (clips[2].id, reason.format("states")))


def test_no_sample_that_can_be_encoded_is_an_error(tmp_path: Path) -> None:
    clips = make_clips(tmp_path, [5] * 2)
    for clip in clips:
        (tmp_path / str(clip.path)).write_bytes(b"")
    with pytest.raises(
        UserError, match=f"None of the 2 samples could be encoded; the first one, {clips[0].id}, cannot"
    ):
        encode(clips, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / INDEX_NAME).exists()


def test_a_full_disk_stops_the_run_and_blames_no_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips, out = make_clips(tmp_path, [5] * 3), tmp_path / "out"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("openhunyuan.latents.store.write_atomic", full)
        with pytest.raises(OSError, match="No space left"):
            encode(clips, tmp_path, out)
    assert not contents(out)
    assert encode(clips, tmp_path, out).samples == 3


def test_clips_go_to_the_bucket_they_fill(tmp_path: Path) -> None:
    clips = make_clips(tmp_path, [5, 9, 1, 14])
    sizes = parse_buckets(["5x32x48", "5x48x32", "9x32x48", "1x32x48", "9x64x96"])
    report = encode(clips, tmp_path, tmp_path / "out", sizes=sizes)
    assert report.left_out == ()
    dataset = ShardDataset(tmp_path / "out")
    found = {sample.metadata["clip"]: tuple(sample.latents.shape[1:]) for sample in dataset.samples}
    assert [found[clip.id] for clip in clips] == [(2, 4, 6), (3, 4, 6), (1, 4, 6), (3, 4, 6)]
    assert {shape[1:]: len(rows) for shape, rows in dataset.buckets().items()} == Counter(found.values())
    said = {b["bucket"]: (b["aspect"], b["scale"], b["samples"]) for b in dataset.index["buckets"]}
    assert said == {"1x32x48": ("3:2", 39, 1), "5x32x48": ("3:2", 39, 1), "9x32x48": ("3:2", 39, 2)}


def test_captions_of_windows_give_a_sample_each(tmp_path: Path) -> None:
    clips = make_clips(tmp_path, [16])
    for text, window in (("first part", (0, 8)), ("second", (8, 16))):
        said = ClipCaption(captioner="vision", text=text, version="1", window=window)
        clips[0] = clips[0].with_caption(said)
    encode(clips, tmp_path, tmp_path / "out")
    first, second = ShardDataset(tmp_path / "out").samples
    assert (first.prompt, second.prompt, second.metadata["first_frame"]) == ("first part", "second", 8)
    expected = torch.tensor([20.0 + 80, 20.0 + 120]) / 127.5 - 1
    assert torch.allclose(second.latents[0, :, 0, 0].float(), expected, atol=0.03)


def turning(clip: Clip, gate: float = 0.9, measure: str = "camera@1", window: tuple[int, int] | None = None) -> Clip:
    """A clip of six seconds that pans for three and then stands, captioned as `caption` does it."""
    moves = ["pan left"] * 3 + ["static"] * 3
    labels = [CameraLabel(first=8 * i, last=8 * i + 8, move=move, confidence=0.97) for i, move in enumerate(moves)]
    inside = tuple(label for label in labels if window is None or window[0] <= label.first < window[1])
    camera = gated_camera(inside, *(window or (0, 48)), gate)
    said = ClipCaption(
        captioner="measured", text="a b", fields={"short": "a", "dense": "a b", "camera": camera}, version="1",
        window=window, camera=CameraEvidence(labels=inside, gate=gate, measure=measure),
    )  # fmt: skip
    return clip.with_caption(said)


def cameras(folder: Path) -> list[str | None]:
    """The labels of a dataset's samples, which all that is known of them agrees on."""
    dataset = ShardDataset(folder)
    found = [dataset.metadata(row) for row in range(len(dataset))]
    assert all(about["caption"]["camera"] == about["camera"] for about in found)
    return [about["camera"] for about in found]


def test_a_samples_camera_label_is_that_of_its_frames(tmp_path: Path) -> None:
    (clip,) = make_clips(tmp_path, [48])
    whole = turning(clip)
    assert whole.captions[-1].fields["camera"] is None
    for name, frames, fps, label in (
        ("start", 5, None, "pan left"),
        ("slow", 9, 8.0, "pan left"),  # every third frame: the three seconds that pan
        ("over", 37, None, None),
        ("most", 45, None, None),
        ("image", 1, None, None),
    ):
        encode([whole], tmp_path, tmp_path / name, sizes=VideoSize(frames, 32, 32), fps=fps)
        assert cameras(tmp_path / name) == [label], name
    assert ShardDataset(tmp_path / "start").made["camera"] == ["camera@1 at 0.9, version 1"]
    windows = turning(turning(clip, window=(0, 24)), window=(24, 48))
    encode([windows], tmp_path, tmp_path / "windows")
    assert cameras(tmp_path / "windows") == ["pan left", "static"]
    (short,) = make_clips(tmp_path, [5])
    encode([turning(short)], tmp_path, tmp_path / "short")  # all of it is encoded: the label is the caption's
    assert cameras(tmp_path / "short") == ["pan left"]


def test_another_gate_makes_other_texts_and_no_other_moments(tmp_path: Path) -> None:
    (clip,), out, size = make_clips(tmp_path, [48]), tmp_path / "out", VideoSize(29, 32, 32)
    encode([turning(clip)], tmp_path, out, sizes=size)
    before = json.loads((out / INDEX_NAME).read_text())
    assert cameras(out) == [None]  # 24 of 29 frames at 0.97: 0.80
    report = encode([turning(clip, gate=0.75)], tmp_path, out, sizes=size)
    assert (report.encoded, report.written, cameras(out)) == (0, 1, ["pan left"])
    after = json.loads((out / INDEX_NAME).read_text())
    assert before["fingerprint"] != after["fingerprint"] and (out / f"index-{before['fingerprint']}.json").is_file()
    texts = {str(index["buckets"][0]["shards"][0]["texts"]) for index in (before, after)}
    assert len(texts) == 2
    with pytest.raises(UserError, match=r"labels 1 are of camera@1 at 0.9, version 1 and 1 of camera@2 at 0.9"):
        other = turning(clip.model_copy(update={"id": "f" * 32}), measure="camera@2")
        encode([turning(clip), other], tmp_path, tmp_path / "mixed")


def test_a_camera_label_of_which_nothing_is_known_is_left_out_and_counted(tmp_path: Path) -> None:
    (clip,) = make_clips(tmp_path, [48])
    own = ClipCaption(captioner="x", text="a", fields={"short": "a", "dense": "a b", "camera": "zoom in"})
    for size, label in ((VideoSize(5, 32, 32), None), (VideoSize(45, 32, 32), "zoom in")):
        (sample,), _ = plan_samples([clip.with_caption(own)], [size], None)
        assert (sample.caption.fields["camera"], sample.unplaced) == (label, label is None)


def test_two_versions_of_a_captioner_are_not_mixed(tmp_path: Path) -> None:
    clips = make_clips(tmp_path, [5, 5, 5])
    for i, version in enumerate(("aaaa", "aaaa", "bbbb")):
        clips[i] = clips[i].with_caption(ClipCaption(captioner="vision", text=version, version=version))
    with pytest.raises(UserError, match=r"2 samples are of version aaaa of vision, those of 1 .* vision@aaaa"):
        encode(clips, tmp_path, tmp_path / "out")
    assert encode(clips[:2], tmp_path, tmp_path / "out", captioner="vision@aa").samples == 2


def test_files_of_another_making_are_refused(tmp_path: Path) -> None:
    clips, out = make_clips(tmp_path, [5] * 2), tmp_path / "out"
    encode(clips, tmp_path, out)
    old = {kind: out / name for name in of_current(out) for kind in ("moments", "texts") if kind in name}
    good = {kind: path.read_bytes() for kind, path in old.items()}
    encode(clips, tmp_path, out, name="other")
    new = {kind: out / name for name in of_current(out) for kind in ("moments", "texts") if kind in name}
    index = json.loads((out / INDEX_NAME).read_text())
    for kind, said in (("moments", "another vae"), ("texts", "another text encoders")):
        mixed = json.loads(json.dumps(index))
        header = read_header(old[kind])
        assert header is not None
        mixed["buckets"][0]["shards"][0][kind] = {"file": str(old[kind].relative_to(out)), "key": header["key"]}
        (out / INDEX_NAME).write_text(json.dumps(mixed))
        with pytest.raises(UserError, match=said):
            ShardDataset(out)
    (out / INDEX_NAME).write_text(json.dumps(index))
    new["moments"].write_bytes(good["moments"])
    with pytest.raises(UserError, match="not the file that the index was written for"):
        ShardDataset(out)
    encode(clips, tmp_path, tmp_path / "fresh")
    encode(clips, tmp_path, tmp_path / "fast", fps=12.0, sizes=VideoSize(1, 32, 32))
    encode(clips, tmp_path, tmp_path / "third", name="third")
    check_mix([ShardDataset(tmp_path / "fresh"), ShardDataset(tmp_path / "fast")])
    with pytest.raises(UserError, match=r"third and .*fresh were made with different vae"):
        Loader([MixEntry(ShardDataset(tmp_path / name)) for name in ("fresh", "third")], 1)


def test_forgotten_clips_leave_every_file_and_index(tmp_path: Path) -> None:
    clips, out = make_clips(tmp_path, [5] * 4), tmp_path / "out"
    encode(clips, tmp_path, out, name="old")
    encode(clips, tmp_path, out)
    gone = clips[1].id
    assert remove_samples(out, lambda about: about.get("clip") == gone) == 1
    assert not any(gone.encode() in path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert [s.prompt for s in ShardDataset(out).samples] == [c.captions[0].text for c in clips if c.id != gone]
    left = [clip for clip in clips if clip.id != gone]
    assert encode(left, tmp_path, out).encoded == 0
    assert len(ShardDataset(out)) == 3
    assert remove_samples(out, lambda about: True) == 3
    assert not list(out.glob("index*.json"))


def test_a_dataset_of_the_format_before_stays_readable_beside(tmp_path: Path) -> None:
    clips, out = make_clips(tmp_path, [5] * 2), tmp_path / "out"
    with ShardWriter(out, provenance={"model": "m"}) as writer:
        writer.add(LatentSample(torch.zeros(16, 2, 4, 4), torch.ones(1, 8), torch.ones(6), "old", {"clip": "x"}))
    encode(clips, tmp_path, out)
    assert len(ShardDataset(out)) == 2
    (name,) = [path.stem.removeprefix("index-") for path in out.glob("index-v1-*.json")]
    assert [sample.prompt for sample in ShardDataset(out, name).samples] == ["old"]
    assert remove_samples(out, lambda about: about.get("clip") == "x") == 0
    assert not list(out.glob("shard-*"))


def test_short_and_dropped_clips_are_left_out_with_a_reason(tmp_path: Path) -> None:
    clips = make_clips(tmp_path, [5, 3, 5])
    clips[2] = clips[2].drop("blur", "is blurred")
    report = encode(clips, tmp_path, tmp_path / "out")
    assert report.samples == 1
    assert report.left_out == ((clips[1].id, "has 3 of the 5 frames needed"),)
    index = json.loads((tmp_path / "out" / INDEX_NAME).read_text())
    assert index["left_out"] == [list(report.left_out[0])]
    with pytest.raises(UserError, match="None of the 1 clips"):
        encode(clips[1:2], tmp_path, tmp_path / "none")


def test_a_clip_without_a_caption_is_one_sentence(tmp_path: Path) -> None:
    clip = make_clips(tmp_path, [5])[0].model_copy(update={"captions": ()})
    with pytest.raises(UserError, match="no caption"):
        encode([clip], tmp_path, tmp_path / "out")


@pytest.mark.parametrize("rate", [None, 24.0, 12.0, 8.0, 30.0, 23.976])
def test_as_many_frames_are_counted_as_are_read(tmp_path: Path, rate: float | None) -> None:
    clip = make_clips(tmp_path, [20])[0]
    assert frames_at(clip, rate, 0, 20) == len(frame_numbers(clip, 99, rate))
    assert frames_at(clip, rate, 7, 20) == len(frame_numbers(clip, 99, rate, 7))


def test_frame_numbers_follow_the_wanted_rate(tmp_path: Path) -> None:
    clip = make_clips(tmp_path, [20])[0]
    assert frame_numbers(clip, 5, None) == [0, 1, 2, 3, 4]
    assert frame_numbers(clip, 5, 12.0) == [0, 2, 4, 6, 8]
    assert frame_numbers(clip, 5, 4.0) == [0, 6, 12, 18]


def test_pixels_cover_and_crop_the_centre() -> None:
    frames = np.zeros((2, 32, 64, 3), np.uint8)
    frames[:, :, 16:48] = 255
    pixels = to_pixels(frames, 32, 32)
    assert pixels.shape == (1, 3, 2, 32, 32)
    assert (pixels == 1.0).all()
    assert to_pixels(frames, 48, 16).shape == (1, 3, 2, 48, 16)

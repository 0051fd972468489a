"""Frame k of a video file is frame k, in every container and with every order of frames."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from videos import DEMO, needs_demo, number_of, write_video

from qtool.core.errors import UserError
from qtool.data.video_decode import read_video

# file, codec, B-frames, options of the encoder
KINDS = [
    ("a.mp4", "libx264", 3, {}),
    ("a.mp4", "libx264", 3, {"x264-params": "open-gop=1"}),
    # x265's cutree writes beyond its memory where pictures are as small as these.
    ("a.mp4", "libx265", 3, {"x265-params": "log-level=none:cutree=0"}),
    ("a.mp4", "mpeg4", 2, {}),
    ("a.mkv", "libx264", 2, {}),
    ("a.mkv", "libvpx-vp9", 0, {"cpu-used": "8", "lag-in-frames": "8"}),
    ("a.webm", "libvpx", 0, {"deadline": "realtime", "lag-in-frames": "8"}),
    ("a.mkv", "ffv1", 0, {}),
    ("a.ts", "libx264", 2, {"x264-params": "open-gop=1"}),
    ("a.ts", "mpeg2video", 2, {}),
    ("a.flv", "libx264", 2, {}),
    ("a.avi", "mpeg4", 2, {}),
    ("a.avi", "mjpeg", 0, {}),
    ("a.mpg", "mpeg2video", 2, {}),
    ("a.h264", "libx264", 2, {}),
]


def only(*numbers: int) -> Callable[[int], np.ndarray]:
    return lambda count: np.array(numbers, np.int64)


def shown(path: Path, *numbers: int, **span: float) -> list[int]:
    return [number_of(frame) for frame in read_video(path, only(*numbers), **span)]


@pytest.mark.parametrize(("name", "codec", "b_frames", "options"), KINDS)
def test_every_frame_is_itself(
    tmp_path: Path, name: str, codec: str, b_frames: int, options: dict[str, str]
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    path = write_video(tmp_path / name, codec, 30, 7, b_frames, options=options)
    counts = []
    frames = read_video(path, lambda count: counts.append(count) or np.arange(count))
    assert counts == [30]
    assert [number_of(frame) for frame in frames] == list(range(30))
    # Alone, each is sought.
    assert [shown(path, number) for number in range(30)] == [[n] for n in range(30)]
    assert shown(path, 2, 2, 13, 25, 29) == [2, 2, 13, 25, 29]


def remux(source: Path, target: Path, earlier: int) -> Path:
    """Copy packets, all times `earlier` frames before: how videos are cut without encoding."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is None:
                continue
            tick = round(1 / (10 * packet.time_base))
            packet.pts, packet.dts = packet.pts - earlier * tick, packet.dts - earlier * tick
            packet.stream = stream
            new.mux(packet)
    return target


def test_frames_before_an_edit_list_do_not_count(tmp_path: Path) -> None:
    path = remux(write_video(tmp_path / "a.mp4", "libx264", b_frames=2), tmp_path / "b.mp4", 5)
    counts = []
    read_video(path, lambda count: counts.append(count) or np.zeros(1, np.int64))
    assert counts == [25]
    assert shown(path, 0, 1, 24) == [5, 6, 29] and shown(path, 3, start=0.5, end=1.0) == [13]


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
@pytest.mark.parametrize(
    ("start", "end", "numbers"),
    [
        (0.0, 100.0, range(30)),
        (1.0, 2.0, range(10, 20)),
        (0.95, 1.25, range(10, 13)),
        (1.32, 1.37, [13]),  # between two frames: the one on the screen
        (50.0, 60.0, [29]),
        (2.9, 2.9, [29]),
    ],
)
def test_a_span_of_seconds_selects_frames(
    tmp_path: Path, name: str, start: float, end: float, numbers: list[int]
) -> None:
    path = write_video(tmp_path / name, "mpeg4", first=3 if name == "a.mp4" else 0)
    frames = read_video(path, np.arange, start, end)
    assert [number_of(frame) for frame in frames] == list(numbers)


def fast_start(folder: Path) -> bytes:
    """Return a video whose index comes before its frames, so that half of it can be opened."""
    with (
        av.open(str(folder / "fast.mp4"), "w", options={"movflags": "faststart"}) as container,
        av.open(str(write_video(folder / "slow.mp4"))) as old,
    ):
        stream = container.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    return (folder / "fast.mp4").read_bytes()


def sound(folder: Path) -> bytes:
    with av.open(str(folder / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        silence.rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    return (folder / "sound.wav").read_bytes()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "does not exist"),
        (lambda folder: b"", "damaged or not a video: Invalid data"),
        (lambda folder: b"hello world" * 100, "damaged or not a video: Invalid data"),
        (lambda folder: write_video(folder / "x.mp4").read_bytes()[:500], "or not a video"),
        (lambda folder: fast_start(folder)[:-100], "a frame of it is truncated"),
        (sound, "holds no pictures"),
    ],
)
def test_files_that_are_no_whole_videos(
    tmp_path: Path, make: Callable[[Path], bytes | None], message: str
) -> None:
    path = tmp_path / "clip.mp4"
    if (data := make(tmp_path)) is not None:
        path.write_bytes(data)
    with pytest.raises(UserError, match=rf"video .*clip\.mp4 .*{message}") as caught:
        read_video(path, only(20))
    assert "\n" not in str(caught.value)


def test_damage_inside_a_video_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", "libx264", b_frames=2)
    whole = path.read_bytes()
    for place in np.linspace(
        whole.find(b"mdat") + 900, whole.find(b"moov") - 100, 12, dtype=int
    ):
        path.write_bytes(whole[:place] + bytes(30) + whole[place + 30 :])
        with pytest.raises(UserError, match="is damaged"):
            read_video(path, np.arange)


@needs_demo
@pytest.mark.parametrize(
    "name", ["mmaction2_demo.mp4", "mmaction2_test.mp4", "mmaction2_test.avi"]
)
def test_sought_frames_of_real_videos_are_those_counted(name: str) -> None:
    with av.open(str(DEMO / name)) as container:
        # In this AVI the packets' times are out of order, in FFmpeg's eyes.
        counted = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    numbers = np.linspace(0, len(counted) - 1, 9).astype(np.int64)
    sought = read_video(DEMO / name, lambda count: numbers[numbers < count])
    assert np.array_equal(sought, np.stack([counted[number] for number in numbers]))


@needs_demo
def test_a_flipped_bit_before_the_last_frame_wanted_is_refused(tmp_path: Path) -> None:
    whole = (DEMO / "mmaction2_part_0.mp4").read_bytes()
    for place in np.linspace(whole.find(b"mdat") + 2000, len(whole) - 20_000, 4, dtype=int):
        flipped = whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :]
        (tmp_path / "a.mp4").write_bytes(flipped)
        # FFmpeg shows something, and says only in passing that it is incomplete.
        with pytest.raises(UserError, match="is damaged: frame 31 is incomplete"):
            read_video(tmp_path / "a.mp4", only(31))

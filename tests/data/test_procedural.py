"""Tests of the procedural video dataset."""

import csv
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from time import monotonic, sleep

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from layerlock_hf.data.procedural import (
    FOCAL_LENGTH,
    MOTIONS,
    SHAPES,
    SWAY,
    ProceduralScene,
    make_scene,
    read_depth,
    read_tracks,
    video_scene,
    write_procedural_dataset,
)


SIZE = 48


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are handled fastest on one thread, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def scene() -> ProceduralScene:
    return make_scene(3, "left")


def decode(path) -> Tensor:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def room_depth(scene: ProceduralScene, time: int, row: int) -> float:
    """Depth of the empty room in metres, from the geometry of one ray."""
    slope = (row + 0.5 - SIZE / 2) / (FOCAL_LENGTH * SIZE)
    height = scene.floor_height - SWAY * math.sin(scene.sway_phase + scene.sway_rate * time)
    return min(scene.wall_distance, height / slope) if slope > 0 else scene.wall_distance


def test_render_shapes_and_ranges():
    for index in range(16):
        frames, depth = video_scene(0, index)[0].render([0, 5, 300], SIZE)
        assert frames.shape == (3, 3, SIZE, SIZE) and frames.dtype == torch.uint8
        assert depth.shape == (3, SIZE, SIZE) and depth.dtype == torch.float32
        assert depth.isfinite().all() and depth.min() > 1 and depth.max() <= 6
        assert frames.float().std() > 10


def test_render_is_deterministic_and_frames_are_independent(scene):
    frames, depth = scene.render(range(12), SIZE)
    again, depth_again = make_scene(3, "left").render(torch.tensor([4, 9]), SIZE)
    assert torch.equal(frames[[4, 9]], again)
    assert torch.equal(depth[[4, 9]], depth_again)
    assert not torch.equal(frames, make_scene(4, "left").render(range(12), SIZE)[0])


def test_videos_depend_on_seed_and_index_and_labels_are_balanced():
    labels = [video_scene(5, index)[1] for index in range(80)]
    assert all(sorted(labels[i : i + 8]) == list(range(8)) for i in range(0, 80, 8))
    assert labels[:8] != labels[8:16]
    assert video_scene(5, 11) == video_scene(5, 11)
    scene, label = video_scene(5, 11)
    assert scene.motion == MOTIONS[label]
    assert replace(scene, motion="up") != replace(video_scene(6, 11)[0], motion="up")


def test_only_the_motion_depends_on_the_class(scene):
    for motion in MOTIONS:
        assert replace(make_scene(3, motion), motion="left") == scene


def test_room_depth_is_exact(scene):
    _, depth = replace(scene, billboards=()).render([0, 7], SIZE)
    for i, time in enumerate((0, 7)):
        expected = torch.tensor([room_depth(scene, time, row) for row in range(SIZE)])
        torch.testing.assert_close(depth[i], expected[:, None].expand(-1, SIZE))
    assert depth[0, 0, 0] == pytest.approx(scene.wall_distance)
    assert depth[0, -1, 0] < scene.wall_distance


def test_objects_have_their_depth_and_metric_size_and_the_nearer_one_occludes(scene):
    centred = {"start": (0.5, 0.5), "radius": 0.4, "shape": "disc"}
    far, near = (replace(scene.billboards[0], depth=depth, **centred) for depth in (2.0, 1.6))
    still = replace(scene, sway_rate=0.0, sway_phase=0.0)
    room = replace(still, billboards=()).render([0], SIZE)[1][0]
    offset = torch.arange(SIZE) + 0.5 - SIZE / 2
    distance = torch.hypot(offset[:, None], offset)  # pixels
    for boards, front in (((far,), far), ((far, near), near)):
        depth = replace(still, billboards=boards).render([0], SIZE)[1][0]
        inside = distance < front.radius * FOCAL_LENGTH * SIZE / front.depth
        assert torch.equal(depth, torch.where(inside, front.depth, room))


def test_floor_hides_what_is_below_it(scene):
    board = replace(scene.billboards[0], depth=scene.wall_distance - 0.01, start=(0.5, 0.9), speed=0.0)
    with_board = replace(scene, billboards=(board,), wall_distance=6.0).render([0], SIZE)[1]
    room = replace(scene, billboards=(), wall_distance=6.0).render([0], SIZE)[1]
    assert (with_board <= room).all()
    assert torch.equal(with_board[room < board.depth], room[room < board.depth])


@pytest.mark.parametrize("motion", MOTIONS)
def test_poses_are_uniform_at_every_time_and_never_seen_twice(motion):
    boards = [board for seed in range(300) for board in make_scene(seed, motion).billboards]
    times = torch.tensor([0.0, 17.0, 47.0])
    zeros = torch.zeros(3)
    poses = [board.pose(motion, times, zeros, zeros) for board in boards]
    fractions = torch.stack(
        [
            torch.stack((x / board.period + 0.5, y / board.period + 0.5, angle.remainder(2 * math.pi) / (2 * math.pi)))
            for board, (x, y, angle) in zip(boards, poses, strict=True)
        ]
    )
    ranks = (torch.arange(len(boards)) + 0.5) / len(boards)
    distance = (fractions.sort(dim=0).values - ranks[:, None, None]).abs().amax(dim=0)
    # The Kolmogorov-Smirnov bound of probability 1e-4.
    assert distance.max() < 2.23 / math.sqrt(len(boards))
    assert all(board.period > board.window + 2 * board.radius for board in boards)


@pytest.mark.parametrize(
    ("motion", "direction"), [("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1))]
)
def test_translations_move_objects_as_named(scene, motion, direction):
    board = replace(scene.billboards[0], start=(0.5, 0.5))
    times = torch.tensor([0.0, 2.0])
    x, y, angle = board.pose(motion, times, torch.zeros(2), torch.zeros(2))
    step = torch.stack((x[1] - x[0], y[1] - y[0])) / board.window * 64  # pixels at image size 64
    assert 3.0 <= step.norm() <= 8.0
    torch.testing.assert_close(step / step.norm(), torch.tensor(direction, dtype=torch.float32))
    assert angle[0] == angle[1]


def test_rotations_turn_objects_as_named(scene):
    board = replace(scene.billboards[0], start=(0.5, 0.5))
    times = torch.tensor([0.0, 1.0, 2.0])
    for motion, sign in (("clockwise", 1), ("counterclockwise", -1)):
        x, y, angle = board.pose(motion, times, torch.zeros(3), torch.zeros(3))
        assert (x.abs().max(), y.abs().max()) < (1e-5, 1e-5)
        assert (angle.diff().sign() == sign).all()
        x, y, angle = board.pose("orbit_" + motion, times, torch.zeros(3), torch.zeros(3))
        assert (angle.diff() == 0).all()
        # With y down, a positive cross product of successive positions is a clockwise turn on the screen.
        assert ((x[:-1] * y[1:] - y[:-1] * x[1:]).sign() == sign).all()


def test_rendered_rotation_is_clockwise_on_screen(scene):
    board = replace(scene.billboards[0], shape="triangle", depth=1.5, start=(0.5, 0.5), start_angle=-math.pi / 2)
    board = replace(board, radius=0.5, spin=0.3)
    _, depth = replace(scene, motion="clockwise", camera_speed=0.0, sway_rate=0.0, billboards=(board,)).render(
        [0, 1], SIZE
    )
    # One corner points up at frame 0, and moves to the right.
    top = [(frame == board.depth).nonzero()[:8, 1].float().mean() for frame in depth]
    assert top[1] > top[0] + 1


def test_shapes_stay_within_their_radius():
    angle = torch.linspace(-math.pi, math.pi, 1000)
    for outline in SHAPES.values():
        assert outline(angle).max() <= 1 + 1e-5 and outline(angle).min() > 0.2


def test_written_dataset(tmp_path):
    path = write_procedural_dataset(
        tmp_path / "a", 9, seed=2, num_frames=40, image_size=64, with_depth=True, progress=False
    )
    assert path == tmp_path / "a" / "videos.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "motion", "depth"] and len(rows) == 9
    for index, row in enumerate(rows):
        scene, label = video_scene(2, index)
        assert row["path"] == f"videos/{index:06d}.mp4" and row["depth"] == f"depth/{index:06d}.npz"
        assert int(row["label"]) == label and row["motion"] == MOTIONS[label]
        frames, depth = scene.render(range(40), 64)
        decoded = decode(path.parent / row["path"])
        assert decoded.shape == frames.shape
        error = (decoded.float() - frames.float()).square().mean(dim=(1, 2, 3))
        assert (10 * torch.log10(255**2 / error)).min() > 30
        torch.testing.assert_close(read_depth(path.parent / row["depth"]), depth)

    again = write_procedural_dataset(
        tmp_path / "b", 2, seed=2, num_frames=40, image_size=64, with_depth=True, progress=False
    )
    for name in (rows[1]["path"], rows[1]["depth"]):
        assert (path.parent / name).read_bytes() == (again.parent / name).read_bytes()


def test_dataset_without_depth(tmp_path):
    path = write_procedural_dataset(tmp_path, 1, num_frames=3, image_size=32, progress=False)
    assert path.read_text().splitlines()[1].endswith(",")
    assert not (tmp_path / "depth").exists()


def test_bad_arguments(tmp_path, scene):
    with pytest.raises(ValueError, match="motion"):
        make_scene(0, "sideways")
    with pytest.raises(ValueError):
        make_scene(-1, "left")
    with pytest.raises(ValueError, match="negative"):
        video_scene(0, -1)
    for indices in ([], [-1], [0.5], [[0, 1]]):
        with pytest.raises(ValueError, match="frame_indices"):
            scene.render(indices, SIZE)
    with pytest.raises(ValueError, match="image_size"):
        scene.render([0], 0)
    for arguments in ({"num_videos": 0}, {"num_frames": 0}, {"image_size": 33}, {"image_size": 8}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            write_procedural_dataset(**{"folder": tmp_path / "no", "num_videos": 1, **arguments})
    for arguments in ({"num_objects": 0}, {"num_workers": -1}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            write_procedural_dataset(tmp_path / "no", 1, **arguments)
    assert not (tmp_path / "no").exists()


def train_classifier(inputs: Tensor, labels: Tensor, epochs: int = 14, batch_size: int = 64) -> nn.Module:
    """Trains a small convolutional network on inputs (N, 3, H, W) and labels (N,)."""
    torch.manual_seed(0)
    layers = []
    for channels, width, stride in ((3, 16, 2), (16, 32, 1), (32, 48, 2)):
        layers += [nn.Conv2d(channels, width, 5, stride, padding=2), nn.BatchNorm2d(width), nn.ReLU()]
    pool = (nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(48, len(MOTIONS)))
    model = nn.Sequential(*layers, *pool)
    steps = epochs * len(inputs) // batch_size
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(len(inputs), (batch_size,))
        sign = torch.randint(2, (batch_size, 1, 1, 1)) * 2.0 - 1  # inverted brightness moves alike
        loss = nn.functional.cross_entropy(model(inputs[batch] * sign), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@pytest.mark.slow
def test_label_needs_motion():
    """The same classifier is at chance on single frames, and well above it on differences of successive frames."""
    starts, num_train, num_test, size = (0, 20, 41), 640, 320, 32
    times = [start + 2 * step for start in starts for step in range(4)]
    videos = [video_scene(7, index) for index in range(num_train + num_test)]
    labels = torch.tensor([label for _, label in videos])
    frames = torch.stack([scene.render(times, size)[0] for scene, _ in videos]).float() / 255
    frames = frames.unflatten(1, (len(starts), 4))
    differences = frames.mean(dim=3).diff(dim=2)

    accuracy = {}
    for name, inputs in (("frame", 3 * (frames[:, :, 0] - 0.5)), ("motion", differences / differences.std())):
        model = train_classifier(inputs[:num_train].flatten(0, 1), labels[:num_train].repeat_interleave(len(starts)))
        with torch.no_grad():
            predicted = torch.stack([model(inputs[num_train:, i]).argmax(dim=1) for i in range(len(starts))])
        accuracy[name] = (predicted == labels[num_train:]).float().mean(dim=1)
    print(accuracy)

    chance = 1 / len(MOTIONS)
    band = 3 * math.sqrt(chance * (1 - chance) / num_test)
    assert (accuracy["frame"] - chance).abs().max() < band
    assert accuracy["motion"].min() > 0.6


# ---- easier scenes, tracks, and several processes


def test_scenes_are_those_of_earlier_versions():
    """Results and checkpoints of others rest on them: a draw more or less would change every scene."""
    scene = make_scene(3, "left")
    assert len(scene.billboards) == 3
    drawn = [scene.wall_distance, scene.camera_speed, scene.billboards[0].depth, scene.floor.waves[0][2]]
    assert drawn == pytest.approx([3.256947501430873, -0.015805827443965432, 2.000769666850357, 4.43567148636577])


def test_easy_scenes_have_the_objects_asked_for_and_a_camera_that_stands_still():
    scene, label = video_scene(5, 11, num_objects=1, camera_moves=False)
    assert len(scene.billboards) == 1 and label == video_scene(5, 11)[1]
    camera_x, camera_y = scene.camera(torch.arange(20.0))
    assert len(camera_x.unique()) == len(camera_y.unique()) == 1
    room = replace(scene, billboards=()).render([0, 19], SIZE)[0]
    assert torch.equal(room[0], room[1])
    assert replace(make_scene(3, "left", camera_moves=False), camera_speed=0.5, sway_rate=0.5) == replace(
        make_scene(3, "left"), camera_speed=0.5, sway_rate=0.5
    )


def test_positions_are_where_objects_are_rendered():
    for seed in range(6):
        scene = make_scene(seed, MOTIONS[seed], num_objects=1)
        board = replace(scene.billboards[0], shape="disc", depth=1.5, radius=0.3)
        scene = replace(scene, billboards=(board,))
        times = range(0, 40, 3)
        depth = scene.render(times, SIZE)[1]
        for position, found in zip(scene.positions(times)[0], depth, strict=True):
            pixels = (found == board.depth).nonzero().flip(1) + 0.5  # x, y
            if len(pixels) == 0 or ((pixels < 1) | (pixels > SIZE - 1)).any():
                continue  # out of the frame, at least in part
            torch.testing.assert_close(pixels.mean(dim=0) / SIZE, position, atol=0.02, rtol=0)


def test_tracks_tell_what_is_seen(tmp_path):
    write_procedural_dataset(tmp_path, 3, seed=1, num_frames=30, image_size=32, with_depth=True, progress=False)
    seen_share = []
    for index in range(3):
        scene, _ = video_scene(1, index)
        positions, is_seen = read_tracks(tmp_path / "depth" / f"{index:06d}.npz")
        assert torch.equal(positions, scene.positions(range(30)))
        assert is_seen.shape == (len(scene.billboards), 30) and is_seen.dtype == torch.bool
        inside = ((positions >= 0) & (positions < 1)).all(dim=-1)
        assert not (is_seen & ~inside).any()
        # The nearest object, the last one, can only be hidden by the floor
        on_floor = positions[-1, :, 1] > 0.5
        assert torch.equal(is_seen[-1] & ~on_floor, inside[-1] & ~on_floor)
        seen_share.append(is_seen.float().mean())
    assert 0 < min(seen_share) and max(seen_share) < 1


def test_files_without_tracks_are_read_for_their_depth(tmp_path):
    np.savez_compressed(tmp_path / "old.npz", depth=np.ones((2, 4, 4), np.float32))
    assert torch.equal(read_depth(tmp_path / "old.npz"), torch.ones(2, 4, 4))
    with pytest.raises(ValueError, match="old.npz holds no tracks of objects: write the dataset again"):
        read_tracks(tmp_path / "old.npz")


def test_files_do_not_depend_on_the_number_of_processes(tmp_path):
    settings = {"num_frames": 4, "image_size": 16, "with_depth": True, "num_objects": 1, "progress": False}
    paths = [write_procedural_dataset(tmp_path / str(n), 5, num_workers=n, **settings) for n in (0, 2)]
    alone, shared = ({p.relative_to(path.parent): p.read_bytes() for p in path.parent.rglob("*.*")} for path in paths)
    assert len(alone) == 11 and alone == shared


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_processes_end_with_the_one_that_started_them(tmp_path, end):
    code = (
        "import multiprocessing, sys; from layerlock_hf.data.procedural import write_procedural_dataset\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    write_procedural_dataset(sys.argv[1], 100000, num_workers=2, progress=False)\n"
    )
    (tmp_path / "write.py").write_text(code)
    process = subprocess.Popen([sys.executable, tmp_path / "write.py", tmp_path / "data"], stderr=subprocess.DEVNULL)
    folder, deadline = tmp_path / "data" / "videos", monotonic() + 120
    while not folder.is_dir() or len(list(folder.iterdir())) < 4:
        assert process.poll() is None and monotonic() < deadline
        sleep(0.1)
    process.send_signal(end)
    assert process.wait(60) != 0
    counts = [-1]
    while len(counts) < 3 or counts[-1] != counts[-2]:
        assert monotonic() < deadline
        counts.append(len(list(folder.iterdir())))
        sleep(3)
    assert not (tmp_path / "data" / "videos.csv").exists()

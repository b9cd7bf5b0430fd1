"""Scenes of the procedural videos: textured objects move before a moving camera in a simple room.

The label of a clip is the motion that all its objects share, and no single frame
gives it away: positions live on a torus and angles on a circle, both start out uniform, and a translation or a
rotation keeps a uniform distribution uniform. So every frame has the same distribution in all classes.

Coordinates: x to the right, y down, z (depth) forward, in metres. Time is in frames. Clockwise is as seen on screen.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


MOTIONS = (
    "left",
    "right",
    "up",
    "down",
    "clockwise",
    "counterclockwise",
    "orbit_clockwise",
    "orbit_counterclockwise",
)

FOCAL_LENGTH = 0.9  # image widths
FOG_DENSITY = 0.12  # per metre
FOG_COLOUR = (0.72, 0.76, 0.80)
SWAY = 0.12  # metres, amplitude of the camera's vertical motion

_DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}


def _polygon(corners: int) -> Callable[[Tensor], Tensor]:
    """Outline of a regular polygon in polar coordinates, with circumradius 1."""
    sector = 2 * math.pi / corners
    return lambda angle: math.cos(sector / 2) / torch.cos(angle.remainder(sector) - sector / 2)


# Each shape maps the polar angle (radians) to the outline's distance from the centre, as a fraction of the radius.
SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "disc": torch.ones_like,
    "square": _polygon(4),
    "triangle": _polygon(3),
    "star": lambda angle: 0.72 + 0.28 * torch.cos(5 * angle),
}


@dataclass(frozen=True)
class Texture:
    """A sum of plane waves that blends two colours; its scale is metric, so its image frequency reveals distance.

    Attributes:
        colours: two RGB colours in [0, 1].
        waves: (u, v, phase, amplitude) of each wave, with the wave vector (u, v) in radians per metre.
    """

    colours: tuple[tuple[float, ...], tuple[float, ...]]
    waves: tuple[tuple[float, ...], ...]

    def sample(self, u: Tensor, v: Tensor, pixel_u: Tensor | float, pixel_v: Tensor | float) -> Tensor:
        """Colours (..., 3) at the surface points `u`, `v` (...), blurred to a pixel's extent there (all in metres)."""
        signal = torch.zeros(())
        for wave_u, wave_v, phase, amplitude in self.waves:
            # The Gaussian filter's response to the wave: without it, far surfaces would alias and flicker.
            blur = torch.as_tensor(-((wave_u * pixel_u) ** 2 + (wave_v * pixel_v) ** 2) / 8).exp()
            signal = signal + amplitude * blur * torch.sin(wave_u * u + (wave_v * v + phase))
        first, second = torch.tensor(self.colours)
        return torch.lerp(first, second, (0.5 + 0.5 * torch.tanh(2 * signal)).unsqueeze(-1))


@dataclass(frozen=True)
class Billboard:
    """A flat textured object that faces the camera at a constant depth.

    Attributes:
        shape: a key of `SHAPES`.
        texture: texture in the object's own axes.
        radius: circumradius in metres.
        depth: depth in metres.
        start: position at frame 0, as fractions of the torus.
        start_angle: rotation at frame 0, in radians.
        speed: speed on a line or an orbit, in window widths per frame.
        spin: angular speed about the own centre, in radians per frame.
        orbit_radius: in window widths.
        orbit_phase: in radians.
    """

    shape: str
    texture: Texture
    radius: float
    depth: float
    start: tuple[float, float]
    start_angle: float
    speed: float
    spin: float
    orbit_radius: float
    orbit_phase: float

    @property
    def window(self) -> float:
        """Side of the visible square at the object's depth, in metres."""
        return self.depth / FOCAL_LENGTH

    @property
    def period(self) -> float:
        """Period of the torus along x and y in metres."""
        # Longer than what the window and the object span together, so that the wrap happens out of view.
        return self.window + 2.5 * self.radius

    def pose(self, motion: str, times: Tensor, camera_x: Tensor, camera_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Centre x and y relative to the camera (metres) and angle (radians) at `times` (frames); all (T,)."""
        window, period = self.window, self.period
        x, y, angle = torch.zeros_like(times), torch.zeros_like(times), torch.full_like(times, self.start_angle)
        turn = -1.0 if "counterclockwise" in motion else 1.0
        if motion in _DIRECTIONS:
            x, y = (window * self.speed * component * times for component in _DIRECTIONS[motion])
        elif motion.startswith("orbit"):
            phase = self.orbit_phase + turn * self.speed / self.orbit_radius * times
            x, y = window * self.orbit_radius * phase.cos(), window * self.orbit_radius * phase.sin()
        else:
            angle = angle + turn * self.spin * times
        x = (self.start[0] * period + x - camera_x).remainder(period) - period / 2
        y = (self.start[1] * period + y - camera_y).remainder(period) - period / 2
        return x, y, angle


@dataclass(frozen=True)
class ProceduralScene:
    """A room with a floor and a back wall, objects that share one motion, and a camera that translates sideways.

    Attributes:
        motion: one of `MOTIONS`.
        wall_distance: depth of the back wall in metres.
        floor_height: y of the floor in metres, below the camera's mean position.
        camera_speed: along x, in metres per frame.
        sway_rate: angular rate of the camera's vertical motion, in radians per frame.
        sway_phase: in radians.
        floor, wall: textures of the room.
        billboards: the objects, farthest first.
    """

    motion: str
    wall_distance: float
    floor_height: float
    camera_speed: float
    sway_rate: float
    sway_phase: float
    floor: Texture
    wall: Texture
    billboards: tuple[Billboard, ...]

    def camera(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Camera x and y in metres at `times` (frames); all (T,)."""
        return self.camera_speed * times, SWAY * torch.sin(self.sway_phase + self.sway_rate * times)

    def positions(self, frame_indices: Sequence[int] | Tensor) -> Tensor:
        """Where the objects' centres are on the image, farthest object first: (O, T, 2).

        The last axis is x to the right and y down, as fractions of the frame from its upper left corner. Centres out
        of sight have positions too: outside of 0 to 1, or behind what hides them.
        """
        times = torch.as_tensor(frame_indices).float()
        cameras = self.camera(times)
        tracks = []
        for board in self.billboards:
            x, y, _ = board.pose(self.motion, times, *cameras)
            tracks.append(torch.stack((x, y), dim=1) / board.window + 0.5)
        return torch.stack(tracks)

    def render(self, frame_indices: Sequence[int] | Tensor, image_size: int) -> tuple[Tensor, Tensor]:
        """Renders frames, uint8 RGB (T, 3, H, W), and their depth, float32 (T, H, W) in metres along the z axis.

        Depth is exact at the pixel centres. Frames do not depend on which other frames are rendered along.
        """
        times = torch.as_tensor(frame_indices)
        if times.ndim != 1 or len(times) == 0 or times.is_floating_point() or times.min() < 0:
            raise ValueError(f"frame_indices must be a non-empty list of non-negative integers, got {frame_indices}")
        if image_size < 8:
            raise ValueError(f"image_size must be at least 8, got {image_size}")
        times = times.float()
        camera_x, camera_y = self.camera(times)
        pixel = 1 / (FOCAL_LENGTH * image_size)  # metres per pixel at a depth of 1 m
        slope = (torch.arange(image_size) - (image_size - 1) / 2) * pixel
        image, depth = self._render_room(camera_x, camera_y, slope, pixel)

        for board in self.billboards:
            x, y, angle = board.pose(self.motion, times, camera_x, camera_y)
            dx = board.depth * slope - x[:, None]
            dy = board.depth * slope - y[:, None]
            pixel_width = board.depth * pixel
            near = dx.square()[:, None, :] + dy.square()[:, :, None] < (board.radius + pixel_width) ** 2
            frame, row, column = where = (near & (depth > board.depth)).nonzero(as_tuple=True)
            dx, dy, cos, sin = dx[frame, column], dy[frame, row], angle.cos()[frame], angle.sin()[frame]
            u, v = cos * dx + sin * dy, cos * dy - sin * dx
            margin = board.radius * SHAPES[board.shape](torch.atan2(v, u)) - torch.hypot(u, v)
            colour = _fog(board.texture.sample(u, v, pixel_width, pixel_width), torch.tensor(board.depth))
            coverage = (margin / pixel_width + 0.5).clamp(0, 1)
            image[where] = torch.lerp(image[where], colour, coverage.unsqueeze(-1))
            depth[where] = torch.where(margin > 0, board.depth, depth[where])

        frames = (image * 255).round().clamp(0, 255).to(torch.uint8)
        return frames.permute(0, 3, 1, 2).contiguous(), depth

    def _render_room(self, camera_x: Tensor, camera_y: Tensor, slope: Tensor, pixel: float) -> tuple[Tensor, Tensor]:
        """Empty room as colours (T, H, W, 3) and depth (T, H, W), for cameras (T,) and the rays' slopes (H,)."""
        camera_x, camera_y, rows = camera_x[:, None, None], camera_y[:, None, None], slope[:, None]
        height = self.floor_height - camera_y
        floor_depth = torch.where(rows > 0, height / rows, torch.inf)
        is_floor = floor_depth < self.wall_distance
        depth = floor_depth.clamp(max=self.wall_distance)
        x = camera_x + depth * slope
        wall = self.wall.sample(x, camera_y + depth * rows, depth * pixel, depth * pixel)
        # A row of pixels covers a longer stretch of floor, the flatter the floor is seen.
        floor = self.floor.sample(x, depth, depth * pixel, depth.square() / height * pixel)
        image = _fog(torch.where(is_floor.unsqueeze(-1), floor, wall), depth)
        return image, depth.expand(x.shape).contiguous()


def make_scene(
    seed: int | Sequence[int], motion: str, num_objects: int | None = None, camera_moves: bool = True
) -> ProceduralScene:
    """Draws a scene, which depends on the arguments alone and is the same for all motions.

    Args:
        seed: one or more non-negative integers.
        motion: one of `MOTIONS`.
        num_objects: three to five, drawn from the seed, if None.
        camera_moves: False for a camera that stands still.
    """
    if motion not in MOTIONS:
        raise ValueError(f"motion must be one of {MOTIONS}, got {motion!r}")
    if num_objects is not None and num_objects < 1:
        raise ValueError(f"num_objects must be at least 1, or None to draw it, got {num_objects}")
    rng = np.random.default_rng(seed)
    wall_distance = rng.uniform(3.0, 6.0)
    drawn = rng.integers(3, 6)
    billboards = [_draw_billboard(rng, 0.7 * wall_distance) for _ in range(num_objects or drawn)]
    scene = ProceduralScene(
        motion=motion,
        wall_distance=wall_distance,
        floor_height=rng.uniform(0.9, 1.4),
        camera_speed=rng.choice((-1, 1)) * rng.uniform(0.01, 0.04),
        sway_rate=rng.uniform(0.05, 0.15),
        sway_phase=rng.uniform(0, 2 * math.pi),
        floor=_draw_texture(rng, 0.7, rng.uniform(0.4, 0.9, 3), contrast=0.5),
        wall=_draw_texture(rng, 0.9, rng.uniform(0.5, 1.0, 3), contrast=0.25),
        billboards=tuple(sorted(billboards, key=lambda board: -board.depth)),
    )
    return scene if camera_moves else replace(scene, camera_speed=0.0, sway_rate=0.0)


def video_scene(
    seed: int, index: int, num_objects: int | None = None, camera_moves: bool = True
) -> tuple[ProceduralScene, int]:
    """Scene and label (an index into `MOTIONS`) of one video, a function of the arguments alone.

    `num_objects` and `camera_moves` are those of `make_scene`; the label does not depend on them. Every run of eight
    videos that starts at a multiple of eight holds each motion once, in random order.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative, got {seed} and {index}")
    block, position = divmod(index, len(MOTIONS))
    label = int(np.random.default_rng((seed, 0, block)).permutation(len(MOTIONS))[position])
    return make_scene((seed, 1, index), MOTIONS[label], num_objects, camera_moves), label


def _draw_billboard(rng: np.random.Generator, max_depth: float) -> Billboard:
    return Billboard(
        shape=str(rng.choice(list(SHAPES))),
        texture=_draw_texture(rng, 0.35, rng.uniform(0.1, 1.0, 3), contrast=0.7),
        radius=rng.uniform(0.3, 0.5),
        depth=rng.uniform(1.4, max_depth),
        start=(rng.uniform(), rng.uniform()),
        start_angle=rng.uniform(0, 2 * math.pi),
        speed=rng.uniform(1.5, 4.0) / 64,
        spin=rng.uniform(0.12, 0.3),
        orbit_radius=rng.uniform(0.15, 0.25),
        orbit_phase=rng.uniform(0, 2 * math.pi),
    )


def _draw_texture(rng: np.random.Generator, wavelength: float, colour: np.ndarray, contrast: float) -> Texture:
    """Stripes, checks or a triangular lattice of the given wavelength (metres), with two fine waves on top."""
    count = rng.integers(1, 4)
    coarse = rng.integers(8) * math.pi / 4 + math.pi * np.arange(count) / count
    angles = np.append(coarse, rng.uniform(0, 2 * math.pi, 2))
    rates = 2 * math.pi / wavelength * np.append(np.ones(count), rng.uniform(2.0, 3.0, 2))
    phases = rng.uniform(0, 2 * math.pi, len(angles))
    amplitudes = np.append(np.full(count, 0.8 / math.sqrt(count)), (0.2, 0.2))
    waves = np.stack((rates * np.cos(angles), rates * np.sin(angles), phases, amplitudes), axis=1)
    dark = colour * (1 - contrast * rng.uniform(0.8, 1.2, 3))
    return Texture((tuple(colour.tolist()), tuple(dark.tolist())), tuple(map(tuple, waves.tolist())))


def _fog(colour: Tensor, depth: Tensor) -> Tensor:
    """Blends colours (..., 3) into the fog by their depth (...) in metres."""
    return torch.lerp(torch.tensor(FOG_COLOUR), colour, (-FOG_DENSITY * depth).exp().unsqueeze(-1))

"""How long things take and what a runner prints meanwhile. Seconds before --speed."""

from random import Random


def generation_seconds(rng: Random, least: float = 2.0, most: float = 4.0) -> float:
    """Draw the time one generation takes."""
    return rng.uniform(least, most)


def step_logs(steps: int, seconds: float, share: float = 0.9) -> tuple[tuple[float, str], ...]:
    """Return the progress bar a diffusion model prints, one line per step; the last `share` is left for decoding."""
    working = seconds * share
    rate = steps / working
    return tuple((working * step / steps, _bar(step, steps, working * step / steps, rate)) for step in range(steps + 1))


def _bar(step: int, steps: int, elapsed: float, rate: float) -> str:
    full, rest = divmod(step * 80 // steps, 8)
    bar = "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
    if step == 0:
        return f"  0%|{bar:<10}| 0/{steps} [00:00<?, ?it/s]"
    left = (steps - step) / rate
    return f"{step * 100 // steps:3d}%|{bar:<10}| {step}/{steps} [{_clock(elapsed)}<{_clock(left)}, {rate:5.2f}it/s]"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"

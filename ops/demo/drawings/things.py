"""Painters of single things on a quiet ground."""

import math

import numpy as np

from ops.demo.drawings.canvas import Canvas, Floats, hsv, mix, smooth


def ball(canvas: Canvas) -> Floats:
    """One to three lit balls on a table, each with its shadow."""
    horizon = np.float32(canvas.between(-0.35, 0.35))
    wall, table = canvas.palette(2)
    picture = mix(wall, table, smooth(0, 0.12, canvas.y - horizon))
    light_x, light_y = canvas.between(-0.7, 0.7), canvas.between(-0.8, -0.4)
    number = 1 if canvas.chance(0.6) else canvas.whole(2, 3)
    for place in range(number):
        radius = canvas.between(0.34, 0.62) if number == 1 else canvas.between(0.22, 0.36)
        across = canvas.between(-0.35, 0.35) if number == 1 else (place - (number - 1) / 2) * 0.68
        centre_x, centre_y = np.float32(across), np.float32(canvas.between(-0.05, 0.3))
        colour = hsv(canvas.between(0, 1), canvas.between(0.5, 0.95), canvas.between(0.6, 1.0))
        x, y = (canvas.x - centre_x) / np.float32(radius), (canvas.y - centre_y) / np.float32(radius)
        shadow = np.hypot(x + np.float32(light_x * 0.5), (y - np.float32(0.98)) * np.float32(3.4))
        picture = picture * (1 - np.float32(0.6) * (1 - smooth(0.55, 1.15, shadow)))[..., None]
        squared = x * x + y * y
        up = np.sqrt(np.clip(1 - squared, 0, 1))
        facing = np.clip(x * np.float32(light_x) + y * np.float32(light_y) + up * np.float32(0.65), 0, 1)
        gloss = facing ** np.float32(canvas.between(14, 40))
        lit = colour * (np.float32(0.2) + np.float32(0.9) * facing)[..., None] + gloss[
            ..., None
        ] * np.float32(0.7)
        picture = mix(picture, lit, canvas.cover((np.sqrt(squared) - 1) * np.float32(radius)))
    return picture


def polygon(canvas: Canvas) -> Floats:
    """One to three flat triangles, squares, pentagons or hexagons, with a soft shadow."""
    number = canvas.whole(1, 3)
    colours = canvas.palette(number + 2)
    slope = smooth(-1.5, 1.5, canvas.rotated(canvas.between(0, 6.3))[0])
    picture = mix(colours[0], mix(colours[0], colours[1], 0.35), slope)
    for place in range(number):
        sides = canvas.whole(3, 6)
        size = canvas.between(0.45, 0.72) if number == 1 else canvas.between(0.3, 0.5)
        reach = 0.2 if number == 1 else 0.5
        centre_x, centre_y = canvas.between(-reach, reach), canvas.between(-reach, reach)
        turn = canvas.between(0, 2 * math.pi)
        shadow = _inside_polygon(canvas, sides, size, turn, (centre_x + 0.06, centre_y + 0.08))
        picture = picture * (1 - np.float32(0.35) * canvas.cover(shadow, softness=6))[..., None]
        inside = _inside_polygon(canvas, sides, size, turn, (centre_x, centre_y))
        picture = mix(picture, colours[2 + place], canvas.cover(inside))
    return picture


def _inside_polygon(
    canvas: Canvas, sides: int, size: float, turn: float, centre: tuple[float, float]
) -> Floats:
    """Distance [S, S] to the nearest edge line of a regular polygon, negative inside."""
    x, y = canvas.x - np.float32(centre[0]), canvas.y - np.float32(centre[1])
    farthest = np.full_like(x, -9.0)
    for side in range(sides):
        angle = turn + 2 * math.pi * side / sides
        np.maximum(farthest, x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle)), out=farthest)
    return farthest - np.float32(size * math.cos(math.pi / sides))


def flower(canvas: Canvas) -> Floats:
    """One to three flowers with petals around a round heart, before blurred leaves."""
    hue = canvas.between(0.24, 0.4)
    leaves = smooth(-0.8, 0.8, canvas.fractal(3, octaves=3))
    picture = mix(
        hsv(hue, 0.7, canvas.between(0.12, 0.3)), hsv(hue - 0.05, 0.6, canvas.between(0.4, 0.75)), leaves
    )
    number = 1 if canvas.chance(0.55) else canvas.whole(2, 3)
    petal_hue = canvas.between(0.55, 1.17)
    colour = hsv(petal_hue, canvas.between(0.05, 0.85), canvas.between(0.8, 1.0))
    tip = hsv(petal_hue + canvas.between(-0.08, 0.08), canvas.between(0.4, 0.9), canvas.between(0.55, 0.95))
    heart = hsv(canvas.between(0.08, 0.15), 0.85, canvas.between(0.35, 0.95))
    petals = canvas.whole(5, 9)
    for _ in range(number):
        reach = 0.22 if number == 1 else 0.55
        size = canvas.between(0.6, 0.88) if number == 1 else canvas.between(0.32, 0.5)
        x, y = (
            canvas.x - np.float32(canvas.between(-reach, reach)),
            canvas.y - np.float32(canvas.between(-reach, reach)),
        )
        radius, angle = np.hypot(x, y), np.arctan2(y, x) + np.float32(canvas.between(0, 6.3))
        fold = np.abs(np.cos(angle * np.float32(petals / 2)))
        edge = np.float32(size) * (np.float32(0.42) + np.float32(0.58) * np.sqrt(fold))
        petal = mix(colour, tip, smooth(0.1, 1, radius / np.float32(size)))
        petal = petal * (np.float32(0.72) + np.float32(0.28) * fold)[..., None]
        picture = mix(picture, petal, canvas.cover(radius - edge))
        picture = mix(picture, heart, canvas.cover(radius - np.float32(size * canvas.between(0.2, 0.3))))
    return picture

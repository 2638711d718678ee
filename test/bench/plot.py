"""Draw the table of scripts/bench: plot.py RESULT.json RESULT.svg

A bar for each figure that is compared with something: how it compares, so that
more is better, on a scale of powers of two, with a mark where the goal is.
"""

import html
import json
import math
import re
import sys

WIDTH, LEFT, RIGHT, ROW, TOP, BOTTOM = 860, 470, 60, 17, 34, 22
LOWEST, HIGHEST = 1 / 8, 8
REACHED, MISSED, NEUTRAL = "#5a9e6f", "#c0392b", "#8aa4bf"


def x(ratio):
    span = math.log2(HIGHEST / LOWEST)
    at = math.log2(min(max(ratio, LOWEST), HIGHEST) / LOWEST) / span
    return LEFT + at * (WIDTH - LEFT - RIGHT)


def goal_of(line):
    """The ratio that is to be reached, as more is better; None without."""
    found = re.fullmatch(r"([≤≥]) ([0-9.]+)", line["goal"] or "")
    if not found:
        return None
    number = float(found[2])
    return number if found[1] == "≥" else 1 / number


def text(at, y, words, color="#222", anchor="start"):
    return (f'<text x="{at:.0f}" y="{y:.0f}" fill="{color}" '
            f'text-anchor="{anchor}">{html.escape(words)}</text>')


def bar(line, y):
    ratio, goal = line["ratio"], goal_of(line)
    color = NEUTRAL if goal is None else REACHED if ratio >= goal else MISSED
    left, right = sorted((x(1), x(ratio)))
    parts = [text(LEFT - 8, y + 11, f'{line["figure"]} : '
                  f'{line["compared_with"]}', anchor="end"),
             f'<rect x="{left:.1f}" y="{y + 2}" '
             f'width="{max(right - left, 1):.1f}" height="{ROW - 5}" '
             f'fill="{color}"/>',
             text(WIDTH - 6, y + 11, f"{ratio:.2f}", color, "end")]
    if goal is not None:
        parts.append(f'<path d="M{x(goal):.1f} {y}v{ROW - 1}" stroke="#222" '
                     'stroke-width="1.5"/>')
    return parts


def draw(result):
    lines = [line for line in result["table"]
             if line["ratio"] is not None and line["kind"] != "difference"]
    height = TOP + ROW * len(lines) + BOTTOM
    parts = [f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
             text(4, 13, "how the outbox compares; more is better, "
                  "black: the goal")]
    for power in range(-3, 4):
        at = x(2.0 ** power)
        parts.append(f'<path d="M{at:.1f} {TOP - 4}V{height - BOTTOM}" '
                     f'stroke="{"#999" if power == 0 else "#ddd"}"/>')
        parts.append(text(at, TOP - 8, f"{2.0 ** power:g}", "#555", "middle"))
    for i, line in enumerate(lines):
        parts += bar(line, TOP + ROW * i)
    parts.append(text(4, height - 7, result["environment"], "#555"))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
            f'height="{height}" viewBox="0 0 {WIDTH} {height}" '
            'font-family="sans-serif" font-size="11">\n'
            + "\n".join(parts) + "\n</svg>\n")


def main():
    with open(sys.argv[1], encoding="utf-8") as f:
        result = json.load(f)
    with open(sys.argv[2], "w", encoding="utf-8") as f:
        f.write(draw(result))


if __name__ == "__main__":
    main()

"""Small SVG pictures of what Prometheus saw."""

import math

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 640, 96, 12, 34, 24
COLORS = ("#c0392b", "#1f6fb2")
LEVELS = ("#b7dfb9", "#f2c14e", "#c0392b")


class Canvas:
    """Axis of time and spans of faults; begin and end are times in seconds."""

    def __init__(self, title, height, begin, end, spans):
        self.height, self.begin, self.end = height, begin, end
        self.parts = [f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>']
        self.text(4, 13, title)
        for first, last, name in spans:
            x = self.x(first)
            self.parts.append(
                f'<rect x="{x:.0f}" y="{TOP}" width="{self.x(last) - x:.0f}" '
                f'height="{height - TOP - BOTTOM}" fill="#eee"/>')
            self.text(x + 2, TOP - 4, name, "#777")
        for s in range(0, int(end - begin) + 1, 20):
            self.text(self.x(begin + s), height - 8, f"{s} s", "#555",
                      "middle")

    def x(self, t):
        return LEFT + (t - self.begin) / (self.end - self.begin) * (
            WIDTH - LEFT - RIGHT)

    def text(self, x, y, text, color="#222", anchor="start"):
        self.parts.append(f'<text x="{x:.0f}" y="{y:.0f}" fill="{color}" '
                          f'text-anchor="{anchor}">{text}</text>')

    def write(self, file):
        with open(file, "w") as f:
            f.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
                    f'height="{self.height}" viewBox="0 0 {WIDTH} '
                    f'{self.height}" font-family="sans-serif" '
                    'font-size="11">\n' + "\n".join(self.parts) + "\n</svg>\n")


def ticks_of(values, log):
    """The lowest and highest value of the axis, and where it has lines."""
    if log:
        low = math.floor(math.log10(min(values)))
        high = max(math.ceil(math.log10(max(values))), low + 1)
        return low, high, [10.0 ** e for e in range(low, high + 1)]
    high = max(max(values), 1) * 1.05
    step = 10 ** math.floor(math.log10(high))
    if high / step < 3:
        step /= 2
    return 0, high, [i * step for i in range(int(high / step) + 1)]


def lines(file, title, begin, end, spans, series, log=False):
    """series: (name, [(time, value)]); log: a scale of powers of 10."""
    height = 170
    canvas = Canvas(title, height, begin, end, spans)
    low, high, ticks = ticks_of([v for _, points in series for _, v in points
                                 if v > 0 or not log], log)

    def y(v):
        v = math.log10(v) if log else v
        return height - BOTTOM - (v - low) / (high - low) * (
            height - TOP - BOTTOM)

    for tick in ticks:
        canvas.parts.append(f'<path d="M{LEFT} {y(tick):.0f}H{WIDTH - RIGHT}" '
                            'stroke="#ddd"/>')
        canvas.text(LEFT - 6, y(tick) + 4, f"{tick:g}", "#555", "end")
    for i, ((name, points), color) in enumerate(zip(series, COLORS)):
        path, last = [], None
        for t, v in points:
            if log and v <= 0:
                continue
            joined = last is not None and t - last < 3
            path.append(f"{'L' if joined else 'M'}{canvas.x(t):.0f} "
                        f"{y(max(v, 0)):.0f}")
            last = t
        canvas.parts.append(f'<path d="{"".join(path)}" fill="none" '
                            f'stroke="{color}" stroke-width="1.5"/>')
        canvas.text(4, TOP + 14 + 14 * i, name, color)
    canvas.write(file)


def levels(file, begin, end, spans, series):
    """series: (name, [(time, 0, 1 or 2)]), a row of bars for each."""
    row = 15
    canvas = Canvas("health", TOP + BOTTOM + row * len(series), begin, end,
                    spans)
    for i, (name, points) in enumerate(series):
        y = TOP + row * i
        canvas.text(LEFT - 6, y + 11, name, "#222", "end")
        first = 0
        for j, (t, v) in enumerate(points):
            if j + 1 < len(points) and points[j + 1][1] == v:
                continue
            last = points[j + 1][0] if j + 1 < len(points) else t
            x = canvas.x(points[first][0])
            canvas.parts.append(
                f'<rect x="{x:.0f}" y="{y + 2}" '
                f'width="{max(canvas.x(last) - x, 1):.0f}" '
                f'height="{row - 4}" fill="{LEVELS[int(v)]}"/>')
            first = j + 1
    canvas.write(file)

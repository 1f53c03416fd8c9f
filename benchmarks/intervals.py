"""Which interval for one prompt's paired gain, and how often its p-value cries wolf: exactly.

    python benchmarks/intervals.py               # a minute on one thread

K pairs of 0/1 rewards are b won, c lost and the rest tied, so an interval is one for each (b, c),
and its coverage is a sum over all of them: nothing is simulated but the rates of winning and losing
of each prompt. Those are of the policies of toy.py, 480 prompts of each distance.
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb, copysign, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from toy import SHIFTS, Toy

from workbench.probes.gain import p_value, paired_gain
from workbench.records import GainRow
from workbench.sampling import Noise

Interval = Callable[[int, int, int], tuple[float, float]]
"""(b, c, K) → 95 % interval of the gain."""

Z = 1.959964
TOYS, DRAWS = 40, 1500
SEEN = np.random.default_rng(0)


def adjusted(won_and_lost: float, tied: float) -> Interval:
    """Wald's interval after adding made-up pairs: this many won and as many lost, and tied."""

    def interval(b: int, c: int, k: int) -> tuple[float, float]:
        n = k + 2 * won_and_lost + tied
        centre = (b - c) / n
        reach = Z * sqrt(max(0.0, (b + c + 2 * won_and_lost) / n - centre**2) / n)
        return centre - reach, centre + reach

    return interval


def now(b: int, c: int, k: int) -> tuple[float, float]:
    """What the workbench reports."""
    found = paired_gain(*_pairs(b, c, k))
    return float(found.low), float(found.high)


def tango(b: int, c: int, k: int) -> tuple[float, float]:
    """Tango's score interval (Statistics in Medicine 17, 1998), by bisection."""

    def score(gain: float) -> float:
        middle = -b - c + (2 * k - b + c) * gain
        root = sqrt(max(0.0, middle**2 + 8 * k * c * gain * (1 - gain)))
        lost = (root - middle) / (4 * k)  # its likeliest share, were this the gain
        variance = k * (2 * lost + gain * (1 - gain))
        off = b - c - k * gain
        return off / sqrt(variance) if variance > 1e-15 else copysign(1e9, off)

    def crossing(low: float, high: float, target: float) -> float:
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if score(middle) > target else (low, middle)
        return low

    end = 1 - 1e-9
    return crossing(-end, (b - c) / k, Z), crossing((b - c) / k, end, -Z)


def dirichlet(won: float, tied: float, lost: float) -> Interval:
    """The central 95 % of the posterior of the gain under a Dirichlet prior, by 20,000 draws."""

    def interval(b: int, c: int, k: int) -> tuple[float, float]:
        shares = SEEN.dirichlet([b + won, k - b - c + tied, c + lost], 20_000)
        low, high = np.quantile(shares[:, 0] - shares[:, 2], [0.025, 0.975])
        return float(low), float(high)

    return interval


INTERVALS: dict[str, Interval] = {
    "Wald (±1.96 se)": adjusted(0, 0),
    "**Agresti–Min** (reported)": now,
    "Wald, ¼ won, ¼ lost, ½ tied added": adjusted(0.25, 0.5),
    "Bonett–Price": adjusted(1, 0),
    "Tango's score": tango,
    "Bayes, Dirichlet (½, ½, ½)": dirichlet(0.5, 0.5, 0.5),
    "Bayes, Dirichlet (1, 1, 1)": dirichlet(1, 1, 1),
    "Bayes, Dirichlet (¼, ½, ¼)": dirichlet(0.25, 0.5, 0.25),
}


def _pairs(b: int, c: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    won, lost = torch.zeros(1, k), torch.zeros(1, k)
    won[0, :b], lost[0, b : b + c] = 1, 1
    return won, lost


def rates(shift: float, toys: int) -> NDArray[np.float64]:
    """Shares of pairs won and lost of each prompt (P, 2), their difference the exact gain."""
    found = []
    for seed in range(0, 10 * toys, 10):
        case = Toy(shift, seed)
        joint, baseline = (
            case.reward(case.draw(policy, Noise(0, seed, "rates"), DRAWS))
            for policy in (case.joint, case.baseline)
        )
        differ, gain = (joint != baseline).double().mean(1), case.gain_P
        lost = ((differ - gain) / 2).clamp(min=0).maximum(-gain)
        found.append(torch.stack([lost + gain, lost], 1).numpy())
    return np.concatenate(found)


def outcomes(k: int) -> list[tuple[int, int]]:
    """All (b, c) of K pairs."""
    return [(b, c) for b in range(k + 1) for c in range(k + 1 - b)]


def probabilities(k: int, rates_P2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each outcome (P, outcomes)."""
    won, lost = rates_P2.T
    tied = np.clip(1 - won - lost, 0, 1)
    return np.stack(
        [
            comb(k, b) * comb(k - b, c) * won**b * lost**c * tied ** (k - b - c)
            for b, c in outcomes(k)
        ],
        1,
    )


def interval_table(k: int, truths: dict[str, NDArray[np.float64]]) -> str:
    """Coverage and width of each interval at K pairs, in Markdown. truths: `rates` by name."""
    heads = [f"{k} pairs", *(f"{name} apart" for name in truths)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, interval in INTERVALS.items():
        low, high = np.array([interval(b, c, k) for b, c in outcomes(k)]).T
        cells = []
        for rates_P2 in truths.values():
            weights = probabilities(k, rates_P2)
            gain = (rates_P2[:, 0] - rates_P2[:, 1])[:, None]
            inside = (weights * ((low - 1e-9 <= gain) & (gain <= high + 1e-9))).sum(1)
            width = (weights @ (high - low)).mean()
            cells.append(
                f"{100 * inside.mean():.1f} ({100 * np.quantile(inside, 0.05):.1f}), {width:.2f}"
            )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def false_alarms() -> str:
    """How often a prompt whose gain is 0 has a small p-value, in Markdown."""
    shares, levels = (0.1, 0.3, 0.5, 0.7, 1.0), (0.05, 0.005)
    heads = ["pairs", "p ≤", *(f"{share:.0%} differ" for share in shares)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for k in (10, 16, 32):
        p = np.array([_p_value(b, c, k) for b, c in outcomes(k)])
        weights = probabilities(k, np.array([(share / 2, share / 2) for share in shares]))
        for level in levels:
            cells = [f"{100 * value:.2f}" for value in weights @ (p <= level)]
            lines.append(f"| {k} | {level} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _p_value(b: int, c: int, k: int) -> float:
    found = paired_gain(*_pairs(b, c, k))
    gain, error = float(found.gain), float(found.standard_error)
    return p_value(GainRow(1, "paired", "", "", 0, 0, gain, error, float("nan"), k))


READING = """\
Each cell: true gain inside, % on average over prompts (in brackets of the prompts in the worst
twentieth, at most), and the interval's mean width. Summed over all outcomes, not simulated.

- **No interval made of one prompt's ten pairs is clearly nearer to 95 % without covering too
  little elsewhere.** Tango's, Bonett and Price's and Bayes' with uniform shares are wider and cover
  even more; Bayes' with (½, ½, ½) covers the same and is wider, too. Those that add less cover in
  93 % where policies are much apart, and in 87 to 90 % on the worst prompts. The reason is simple:
  where one pair in ten differs, ten pairs are all ties in one case of three, and an interval
  holds the truth in all of these or in none. Agresti and Min's is the shortest that holds 95 % on
  average at every distance, so it is what is reported.
- **More pairs help:** at 32 it covers in 95 to 98 % (Bayes' with (½, ½, ½) in 95 to 96 %).
- Borrowing from the other prompts of the probe set (a Dirichlet prior fitted to all twelve) was
  tried: half as wide where policies are little apart, and 98, 92 and 88 % on average at 8 pairs.
  But on the fifth of prompts with the largest gains, for which one asks, 91, 68 and 70 %.
"""

ALARMS = """\
How often a prompt whose true gain is 0 has a p-value that small, in %, by the share of its pairs
that differ; summed over all outcomes. The p-value is an exact one (Suissa and Shuster, see
workbench/probes/exact.py): never too small, whatever share of the pairs differs. Student's t, used
before, gave 0.005 or less in 2.2 % where all ten pairs differ, and 0.05 in up to 7.7 %.

Of prompts with half the pairs won and a twentieth lost it finds 45 % from ten pairs at p ≤ 0.05,
as many as McNemar's mid-p, which does not hold its level; McNemar's exact test finds 27 %. From 32
pairs 97, 98 and 96 %.

With 12 prompts the false discovery rate asks p ≤ 0.0042 of a single one. Ten pairs can give that:
ten won, nine and a tie, eight and two ties (0.002 to 0.0039). Of prompts with nine pairs in ten
won and a twentieth lost they tell 59 %. Eight pairs could not, not even all won (2⁻⁷).
"""


def report(toys: int = TOYS) -> str:
    """All tables, in Markdown."""
    torch.set_num_threads(1)
    truths = {name: rates(shift, toys) for name, shift in SHIFTS.items()}
    tables = [interval_table(k, truths) for k in (10, 32)]
    return "\n\n".join([*tables, READING.strip(), false_alarms(), ALARMS.strip()])


if __name__ == "__main__":
    print(report())

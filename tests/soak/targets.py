"""A million targets, put to the proxy's grammar and to a second reading of the same rules; every difference is shown.

`./run env PYTHONPATH=tests python tests/soak/targets.py [--count N] [--seed N]`; exit code 1 where they differ.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from random import Random

from support.target_questions import disagreement, from_corpus, from_grammar
from support.target_rules import Understood

SOURCES = {"rows of the corpus, changed": from_corpus, "made by the grammar": from_grammar}


def main() -> int:
    """Ask half of the questions from each source; return 1 if any is answered differently."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=20_261)
    options = parser.parse_args()
    random = Random(options.seed)
    columns, methods, asked = {}, Counter[str](), set[int]()
    differing, began = 0, time.monotonic()
    for source, make in SOURCES.items():
        verdicts = columns[source] = Counter[str]()
        for _ in range(options.count // len(SOURCES)):
            question = make(random)
            verdict, difference = disagreement(question)
            methods[question.method] += 1
            asked.add(hash(question))
            verdicts[verdict.kind if isinstance(verdict, Understood) else verdict.rule] += 1
            if difference:
                differing += 1
                _say(difference)
    _say(f"| verdict | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for verdict_name in sorted(set().union(*columns.values())):
        _say(f"| {verdict_name} | {' | '.join(f'{counts[verdict_name]:,}' for counts in columns.values())} |")
    _say(f"methods: {', '.join(f'{name!r} {count:,}' for name, count in methods.most_common())}")
    _say(f"seed {options.seed}: {methods.total():,} questions, {len(asked):,} different, {differing} disagreements")
    _say(f"{time.monotonic() - began:.0f} seconds")
    return 1 if differing else 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())

"""Do our checker and BFCL's official one say the same of the same calls?

    make setup-bfcl
    python benchmarks/bfcl_checkers.py --each 40

Every answer of BFCL, and mutated ones, are judged by both; what they differ on is printed by cause (docs/bfcl.md).
"""

import argparse
import json
from collections import Counter

from unbraid.bench.bfcl.agreement import agreement
from unbraid.bench.bfcl.installation import find_bfcl


def main() -> None:
    """Print a table by kind of answer, the differences by cause with an example each, and one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--each", type=int, default=10, help="mutated answers per question")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--python", default="", help="interpreter that has the harness")
    given = parser.parse_args()
    installation = find_bfcl(given.python)
    found = agreement(installation, given.each, given.seed)
    by_kind = Counter(difference.mutation for difference in found.differences)
    print(f"bfcl-eval {installation.version}\n")
    print("| answers | asked | right, officially | judged differently |\n| - | - | - | - |")
    for name, asked in found.asked.items():
        print(f"| {name} | {asked} | {found.right[name]} | {by_kind[name]} |")
    causes = Counter(difference.cause for difference in found.differences)
    for cause, count in causes.most_common():
        one = next(difference for difference in found.differences if difference.cause == cause)
        says = "right" if one.ours else "wrong"
        print(f"\n{cause}: {count}; ours says {says}, for example, of {one.id} {json.dumps(one.calls)[:400]}")
    wrong = found.asked["expected"] - found.right["expected"]
    facts = {"asked": sum(found.asked.values()), "differences": dict(causes), "expected wrong": wrong}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()

"""Compares Autobahn's verdicts case by case: what a WebSocket does through the edge is what it does
directly, its close included.

    autobahn.py REPORT DIRECT OTHER...
"""

import json
import sys


def main():
    with open(f"{sys.argv[1]}/index.json") as report:
        agents = json.load(report)
    direct, faults = agents[sys.argv[2]], 0
    for name in sys.argv[3:]:
        other = agents.get(name, {})
        verdict = lambda case: case and (case["behavior"], case["behaviorClose"])
        differ = [n for n in direct if verdict(other.get(n)) != verdict(direct[n])]
        faults += len(differ)
        print(f"autobahn {name}: {'FAIL' if differ else 'PASS'} ({len(direct)} cases, {len(differ)} differ)")
        for case in differ:
            print(f"  {case}: {verdict(direct[case])} directly, {verdict(other.get(case))} {name}")
    sys.exit(1 if faults or not direct else 0)


main()

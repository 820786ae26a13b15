#!/usr/bin/env python3
"""Acceptance of n-gram drafts, worked out from finished texts alone.

The rule (prompt lookup): take the last n tokens of the text, n from MAX down to MIN; find the earliest place in
the text before where the same n tokens stand; what followed there is the draft, at most K tokens, and no more
than leaves room in the answer for the token that the target adds. A lossless greedy target accepts the draft up
to the first token that is not the one of the finished text, and adds that token.

Where the answer ends inside a draft, the text does not tell what the target would have said of the rest: such a
step counts what became text.

stdin:  one answer a line: {"prompt": [ids], "answer": [ids], "room": most tokens the answer could have had}
argv:   MIN MAX K
stdout: one line a step, "answer step drafted accepted ended", and at the end one line a position,
        "position d drafted accepted": steps that proposed at least d, that accepted at least d.
"""
import json
import sys


def draft(text, low, high, k):
    for n in range(high, low - 1, -1):
        if n >= len(text):
            continue
        suffix = text[-n:]
        for start in range(len(text) - n):
            if text[start:start + n] == suffix:
                return text[start + n:start + n + k]
    return []


def main():
    low, high, k = (int(a) for a in sys.argv[1:4])
    drafted, accepted = [0] * (k + 1), [0] * (k + 1)
    for number, line in enumerate(sys.stdin):
        case = json.loads(line)
        answer, done, step = case["answer"], 0, 0
        while done < len(answer):
            room = min(k, case["room"] - done - 1)
            guess = draft(case["prompt"] + answer[:done], low, high, room) if room > 0 else []
            right = 0
            while right < len(guess) and done + right < len(answer) and guess[right] == answer[done + right]:
                right += 1
            ended = done + right >= len(answer)
            print(number, step, len(guess), right, int(ended))
            for d in range(1, k + 1):
                drafted[d] += len(guess) >= d
                accepted[d] += right >= d
            done += right + 1
            step += 1
    for d in range(1, k + 1):
        print("position", d, drafted[d], accepted[d])


if __name__ == "__main__":
    main()

"""The rule of packing in plain Python and lists, slow and short: what the compiled packing has to do exactly."""

from __future__ import annotations

from collections.abc import Sequence

Pieces = list[tuple[int, int, int]]  # document, start, length

PAIRS_TRIED = 64


def pack_slowly(lengths: Sequence[int], cuttable: Sequence[bool], context: int, min_piece: int) -> list[Pieces]:
    """Fill packs with whole documents, then give texts to the stacks of packs by their room."""
    packs, rooms = _packs_of_whole([(lengths[n], n) for n in range(len(lengths)) if not cuttable[n]], context)
    texts = sorted((n for n in range(len(lengths)) if cuttable[n]), key=lambda n: (-min(lengths[n], context + 1), n))
    taken = [0] * len(lengths)
    while texts:
        texts = [n for n in texts if not _place_whole(n, lengths[n] - taken[n], taken[n], packs, rooms)]
        texts = _cut(texts, lengths, taken, packs, rooms, min_piece)
        for _ in range(-(-sum(lengths[n] - taken[n] for n in texts) // context)):
            rooms[context].append(len(packs))
            packs.append([])
    return [pieces for pieces in packs if pieces]


def _packs_of_whole(waiting: list[tuple[int, int]], context: int) -> tuple[list[Pieces], list[list[int]]]:
    packs: list[Pieces] = []
    rooms: list[list[int]] = [[] for _ in range(context + 1)]
    while waiting:
        room, pieces = context, Pieces()
        while fitting := [length for length, _ in waiting if length <= room]:
            chosen = [max(fitting)]
            shortest = min(length for length, _ in waiting)
            if pieces and room - chosen[0] < shortest and 2 * shortest <= room:
                chosen = _best_pair(sorted(fitting), room, chosen[0], shortest)
            for length in chosen:
                document = min(document for size, document in waiting if size == length)
                waiting.remove((length, document))
                pieces.append((document, 0, length))
                room -= length
        rooms[room].append(len(packs))
        packs.append(pieces)
    return packs, rooms


def _best_pair(fitting: list[int], room: int, longest: int, shortest: int) -> list[int]:
    best = [longest]
    for longer in sorted({length for length in fitting if length <= room - shortest}, reverse=True)[:PAIRS_TRIED]:
        shorter = max(length for length in fitting if length <= min(room - longer, longer))
        exists = longer != shorter or fitting.count(longer) > 1
        if longer + shorter > sum(best) and exists:
            best = [longer, shorter]
    return best


def _place_whole(document: int, length: int, start: int, packs: list[Pieces], rooms: list[list[int]]) -> bool:
    room = next((room for room in range(length, len(rooms)) if rooms[room]), None)
    if room is None:
        return False
    pack = rooms[room].pop()
    packs[pack].append((document, start, length))
    rooms[room - length].append(pack)
    return True


def _cut(
    texts: list[int], lengths: Sequence[int], taken: list[int], packs: list[Pieces], rooms: list[list[int]], least: int
) -> list[int]:
    texts, waiting = list(texts), []
    for size in range(len(rooms) - 1, least - 1, -1):
        stack, rooms[size] = rooms[size], []
        for pack in reversed(stack):
            room = size
            while room >= least and texts:
                document = texts[0]
                rest = lengths[document] - taken[document]
                length = rest if rest <= room else min(room, rest - least)
                if length < least:
                    waiting.append(texts.pop(0))
                    continue
                packs[pack].append((document, taken[document], length))
                taken[document] += length
                room -= length
                if length == rest:
                    texts.pop(0)
            rooms[room].append(pack)
    return waiting + texts

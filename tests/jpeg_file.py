"""Reads the quantised coefficients of a JPEG file (ITU-T T.81, baseline, Huffman), from which libjpeg makes pixels."""

import re

import numpy as np

_ZIGZAG = sorted(range(64), key=lambda i: (i // 8 + i % 8, (i // 8 if (i // 8 + i % 8) % 2 else i % 8)))


def coefficients(data: bytes) -> tuple[list[np.ndarray], np.ndarray]:
    """Reads a file of three components, with chroma halved in both directions and a restart marker after every MCU.

    Returns:
      For each of Y, Cb and Cr int[rows, columns, 8, 8], the quantised blocks [u, v] of whole MCUs; and the quantisation
      steps uint8[2, 8, 8] of luma and chroma.
    """
    steps, huffman, position = np.zeros((2, 64), np.uint8), {}, 2
    while True:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        body, position = data[position + 4 : position + 2 + length], position + 2 + length
        if marker == 0xDB:
            for table in range(0, len(body), 65):
                steps[body[table]][_ZIGZAG] = list(body[table + 1 : table + 65])
        elif marker == 0xC4:
            while body:
                lengths = body[1:17]
                symbols, body, key = body[17 : 17 + sum(lengths)], body[17 + sum(lengths) :], body[0]
                huffman[key] = _codes(lengths, symbols)
        elif marker == 0xC0:
            height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            assert body[5] == 3 and [body[7], body[10], body[13]] == [0x22, 0x11, 0x11], "4:2:0"
        elif marker == 0xDA:
            break
    scans = iter(re.split(rb"\xff[\xd0-\xd9]", data[position:]))
    rows, columns = -(-height // 16), -(-width // 16)
    blocks = [np.zeros((rows * n, columns * n, 8, 8), int) for n in (2, 1, 1)]
    for row in range(rows):
        for column in range(columns):
            bits, mean = _Bits(next(scans).replace(b"\xff\x00", b"\xff")), [0, 0, 0]
            for component, n in enumerate((2, 1, 1)):
                for i in range(n * n):
                    block = _block(bits, huffman[component > 0], huffman[0x10 + (component > 0)])
                    mean[component] += block[0, 0]
                    block[0, 0] = mean[component]
                    blocks[component][row * n + i // n, column * n + i % n] = block
    assert list(scans) == [b""]
    return blocks, steps.reshape(2, 8, 8)


def _codes(lengths: bytes, symbols: bytes) -> dict[tuple[int, int], int]:
    codes, code, number = {}, 0, 0
    for length, count in enumerate(lengths, start=1):
        for _ in range(count):
            codes[length, code] = symbols[number]
            code, number = code + 1, number + 1
        code <<= 1
    return codes


class _Bits:
    def __init__(self, data: bytes):
        self._bits, self._next = np.unpackbits(np.frombuffer(data, np.uint8)).tolist(), 0

    def symbol(self, codes: dict[tuple[int, int], int]) -> int:
        code = length = 0
        while (length, code) not in codes:
            code, length = 2 * code + self._bits[self._next], length + 1
            self._next += 1
        return codes[length, code]

    def number(self, length: int) -> int:
        value = int("".join(map(str, self._bits[self._next : self._next + length])) or "0", 2)
        self._next += length
        return value if length == 0 or value >> (length - 1) else value - (1 << length) + 1


def _block(bits: _Bits, mean_codes: dict, other_codes: dict) -> np.ndarray:
    block, index = np.zeros(64, int), 1
    block[0] = bits.number(bits.symbol(mean_codes))
    while index < 64:
        zeros, length = divmod(bits.symbol(other_codes), 16)
        if length == 0 and zeros < 15:
            break
        index += zeros
        block[_ZIGZAG[index]] = bits.number(length)
        index += 1
    return block.reshape(8, 8)

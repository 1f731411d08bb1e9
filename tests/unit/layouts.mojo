"""Prints the sizes that the kernels compute, one encoding per line."""
from kernels.encodings import KINDS, encoding, panel_bytes



def main() raises:
    comptime for kind in range(KINDS):
        comptime e = encoding[kind]()
        comptime name = e.name
        comptime columns = e.block_columns
        # Where a block is one column or two, they can be odd.
        comptime last = 77 if columns <= 2 else 512
        print(
            name,
            columns,
            panel_bytes[kind](columns),
            panel_bytes[kind](4096),
            panel_bytes[kind](last),
        )

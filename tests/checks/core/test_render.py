"""Tables on the screen."""

import io

from rich.console import Console

from checks.core.render import Row, Table, print_table


def test_control_characters_of_names_and_texts_do_not_act_on_the_terminal():
    for failed in ((), (1,)):
        row = Row("conv\x1b[31m.weight", ("1.5", "\x1b]0;title\x07"), failed)
        screen = io.StringIO()
        table = Table("tensor", ("error", "place"), (row,), text_columns=1)
        print_table(Console(file=screen, width=80), table)
        assert "\x1b" not in screen.getvalue()
        assert r"conv\x1b[31m.weight" in screen.getvalue()
        assert r"\x1b]0;title\x07" in screen.getvalue()

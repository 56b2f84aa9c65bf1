import os
import signal

from microseg.processes import IdleProcesses, ending, sendable


class _Fake:
    def __init__(self) -> None:
        self.lives, self.closed = True, False

    def alive(self) -> bool:
        return self.lives

    def close(self) -> None:
        self.closed = True


def test_processes_are_reused_unless_they_were_killed():
    idle = IdleProcesses(_Fake, most=1)
    first, second = idle.take(), idle.take()
    idle.give_back(first)
    idle.give_back(second)  # one too many
    assert (first.closed, second.closed, len(idle)) == (False, True, 1)
    first.lives = False
    assert idle.take() not in (first, second)
    assert first.closed


def test_a_fork_has_none_of_the_processes():
    idle = IdleProcesses(_Fake)
    idle.give_back(_Fake())
    if (child := os.fork()) == 0:
        os._exit(len(idle))
    assert os.waitpid(child, 0)[1] == 0
    assert len(idle) == 1


def test_endings_have_names():
    assert ending(-signal.SIGKILL) == "SIGKILL"
    assert ending(3) == "exit status 3"


def test_exceptions_that_cannot_be_sent_keep_their_text():
    class LocalError(OSError):
        pass

    error = ValueError("a")
    assert sendable(error) is error
    assert type(sendable(LocalError("no space"))) is OSError
    assert "no space" in str(sendable(LocalError("no space")))

"""The one error that is the user's to fix."""


class UserError(ValueError):
    """A wrong input, said in one sentence: what is wrong, what is allowed, how to fix it.

    The command line prints the sentence on stderr and exits with code 2; Python users see an ordinary ``ValueError``.
    """

    def __init__(self, sentence: str) -> None:
        # One line always: the command line promises one sentence, and messages may embed paths or foreign errors.
        super().__init__(" ".join(sentence.split()))

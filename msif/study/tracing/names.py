"""Names of columns of scores, which are keys of files of tensors and so are written as text."""

from dataclasses import dataclass

FORMS = ("raw", "normalised")


@dataclass(frozen=True)
class Name:
    """A method's score in one of its forms: "multi_stage/normalised"."""

    method: str
    form: str

    @classmethod
    def of(cls, text):
        """The name of a column; ValueError unless it is "method/form" with a form of `FORMS`."""
        method, _, form = text.rpartition("/")
        if not method or form not in FORMS:
            raise ValueError(f"column {text!r}: expected a method and one of {FORMS}, as in a/raw")
        return cls(method, form)

    def __str__(self):
        return f"{self.method}/{self.form}"

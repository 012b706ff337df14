"""The logger: receives what a run reports, as flat mappings."""


class Example:
    """Appends one line an event of kind "step": the step, the name of a number, the number."""

    def __init__(self, file):
        self.file = file.open("a", encoding="utf-8")

    def log(self, event):
        """Take one event, whose "kind" is "step", "epoch", "evaluation", or one that a task invents."""
        if event["kind"] == "step":
            for name, value in event.items():
                if isinstance(value, float):
                    self.file.write(f"{event.get('step', '')},{name},{value}\n")

    def close(self):
        """Flush and release; called once."""
        self.file.close()

"""Laws that hold for any input: the same examples in every run, whatever the machine's speed, and
nothing kept between runs."""

from tempfile import gettempdir

from hypothesis import configuration, settings

configuration.set_hypothesis_home_dir(f"{gettempdir()}/hypothesis")
settings.register_profile("laws", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("laws")

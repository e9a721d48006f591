import subprocess
import sys
import time

from dragoman.training.startup import StartClock


def test_the_phases_add_up_to_the_whole():
    clock = StartClock(age_s=2.0)
    clock.mark("program")
    time.sleep(0.01)
    clock.mark("statistics")
    clock.mark("statistics")
    assert clock.phases["program"] >= 2.0
    assert clock.phases["statistics"] >= 0.01
    assert abs(clock.total_s - sum(clock.phases.values())) < 1e-6
    first, *lines = clock.report().splitlines()
    assert first.startswith("first step after 2.")
    assert [line.split()[0] for line in lines] == ["program", "statistics"]


def test_the_clock_of_a_process_begins_with_it():
    code = (
        "import time; time.sleep(0.5)\n"
        "from dragoman.training.startup import StartClock\n"
        "clock = StartClock.since_process_start(); clock.mark('x'); print(clock.total_s)"
    )
    started_s = time.monotonic()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    most = time.monotonic() - started_s
    least = 0.5 if sys.platform == "linux" else 0.0
    assert least <= float(run.stdout) <= most + 0.02  # the system counts in hundredths

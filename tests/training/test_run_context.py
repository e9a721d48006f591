import subprocess
import sys
import time

from dragoman.training.run_context import StartTimer


def test_the_phases_add_up_to_the_whole():
    timer = StartTimer(age_s=2.0)
    timer.mark("program")
    time.sleep(0.01)
    timer.mark("statistics")
    timer.mark("statistics")
    assert timer.phases["program"] >= 2.0
    assert timer.phases["statistics"] >= 0.01
    assert abs(timer.total_s - sum(timer.phases.values())) < 1e-6
    first, *lines = timer.report().splitlines()
    assert first.startswith(f"first step after {timer.total_s:.1f}")
    assert [line.split()[0] for line in lines] == ["program", "statistics"]


def test_the_timer_of_a_process_begins_with_it():
    code = (
        "import time; time.sleep(0.5)\n"
        "from dragoman.training.run_context import StartTimer\n"
        "timer = StartTimer.since_process_start(); timer.mark('x'); print(timer.total_s)"
    )
    started_s = time.monotonic()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    most = time.monotonic() - started_s
    least = 0.5 if sys.platform == "linux" else 0.0
    assert least <= float(run.stdout) <= most + 0.02  # the system counts in hundredths

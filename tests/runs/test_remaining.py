from cahqp.runs.remaining import Remaining


def test_the_speed_of_finished_stages_scales_the_rest():
    left = Remaining({"scenes": 10, "adapt": 100, "report": 5})
    assert left.seconds() == 115
    left.end("scenes", 30)  # three times slower than expected
    assert left.seconds() == 3 * 105
    assert left.seconds("adapt", 120) == 3 * 105 - 120
    assert left.seconds("adapt", 900) == 15  # late: only the others are left
    left.end("adapt")  # was done before: no news of the speed
    assert left.seconds() == 15
    left.end("report", 10)
    assert left.seconds() is None


def test_without_costs_there_is_no_estimate():
    assert Remaining({}).seconds("adapt", 3) is None

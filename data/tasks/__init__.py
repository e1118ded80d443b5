"""The generated tasks: each module makes an endless stream of problems and judges the answers."""

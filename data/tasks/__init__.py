"""The generated tasks: each module makes an endless stream of problems and judges what is written to them."""

from distft.data.command import main
from distft.runtime.command import run_command

run_command(main)

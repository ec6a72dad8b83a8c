from sngd.cli import main

main()

from pipnet_edge.cli.app import main

main()

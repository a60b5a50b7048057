from pipnet_edge.worker.serve import main

main()

"Python imports this module at start-up in every process that has this folder on its path"
import guarded_socket

guarded_socket.install()

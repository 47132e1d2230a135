variable "package" {
  description = "Path of the Debian package, as `cargo xtask package` makes it. Another one is installed on every host as an upgrade."
  type        = string
}

variable "server_count" {
  description = "How many servers: one with its file, or three over etcd. It is chosen once: going from one to the other is a move (docs/operations.md), and here it would replace the mesh."
  type        = number
  default     = 1

  validation {
    condition     = contains([1, 3], var.server_count)
    error_message = "There is one server, or there are three."
  }
}

variable "service_count" {
  description = "How many of service_addresses are used: fcs00, fcs01, …"
  type        = number
  default     = 1
}

variable "consumer_count" {
  description = "How many of consumer_addresses are used: fcc00, fcc01, …"
  type        = number
  default     = 1
}

variable "server_addresses" {
  description = "Addresses of the hosts murmesh00, murmesh01, murmesh02, by which this machine and the other hosts reach them."
  type        = list(string)
}

variable "service_addresses" {
  description = "Addresses of hosts for services, as many as there may ever be."
  type        = list(string)
  default     = []
}

variable "consumer_addresses" {
  description = "Addresses of hosts that only connect, as many as there may ever be."
  type        = list(string)
  default     = []
}

variable "ssh_user" {
  description = "Who logs in: root, or somebody whom sudo asks for no password."
  type        = string
  default     = "root"
}

variable "ssh_port" {
  description = "Port of sshd on every host."
  type        = number
  default     = 22
}

variable "ssh_private_key_file" {
  description = "Path of the private key to log in with. The key itself gets into no plan and no state."
  type        = string
}

variable "ssh_host_keys" {
  description = "Public key of each host by its name, such as fcs00 = \"ecdsa-sha2-nistp256 AAAA…\": the ECDSA key where sshd has one (/etc/ssh/ssh_host_ecdsa_key.pub), because terraform asks for that first. Whoever is left out is believed to be who answers."
  type        = map(string)
  default     = {}
}

variable "fortune" {
  description = "Whether the example runs on the hosts for services: socat on port 8181, which answers with a fortune."
  type        = bool
  default     = true
}

variable "luks_device" {
  description = "Empty block device of every host, such as /dev/vdb, that is encrypted (LUKS2) and holds /var/lib/murmesh. Null for none."
  type        = string
  default     = null
}

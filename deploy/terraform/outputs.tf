output "join_line" {
  description = "What lets one more host join, run as root there by somebody who may log in on the first server. The token is made when it runs, so none is kept here."
  value       = "murmesh up --join \"$(ssh ${var.ssh_user}@${local.first_input.address} ${var.ssh_user == "root" ? "" : "sudo "}murmesh token create)\""
  depends_on  = [terraform_data.first_server]
}

output "server_addresses" {
  description = "Where agents reach the servers."
  value       = [for address in values(local.servers) : length(split(":", address)) > 2 ? "[${address}]:9190" : "${address}:9190"]
  depends_on  = [terraform_data.server]
}

output "hosts" {
  description = "Name and address of every host of the mesh."
  value       = local.hosts
}
